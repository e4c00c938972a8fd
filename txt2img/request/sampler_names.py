"""Names of samplers, schedules and other programs: one row each, with what depends on the name."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Self

from txt2img.errors import BadRequest
from txt2img.system.text import shown


@dataclass(frozen=True)
class NameRow:
    """A name, its label in A1111's texts, and what other programs call the same thing."""

    name: str
    label: str = ""
    aliases: tuple[str, ...] = ()
    is_default: bool = False  # requests without a name mean this one, and hold None for it


class Name(StrEnum):
    """Names that are parsed forgivingly: case, spaces, hyphens and underscores do not matter."""

    _value_: str
    label: str
    aliases: tuple[str, ...]
    is_default: bool

    def __new__(cls, row: NameRow) -> Self:
        """A member from its row."""
        member = str.__new__(cls, row.name)
        member._value_ = row.name
        member.label, member.aliases = row.label or row.name, row.aliases
        member.is_default = row.is_default
        return member

    @classmethod
    def parse(cls, text: str) -> Self:
        """The member that `text` names; BadRequest lists the names and the nearest."""
        name = _canonical(text)
        known = {_canonical(alias): member for member in cls for alias in member.aliases}
        known |= {_canonical(member.value): member for member in cls}
        for form in (name, cls._bare(name)):
            if form in known:
                return known[form]
        names = ", ".join(member.value for member in cls)
        if name == "list":
            raise BadRequest(f"every {cls.__name__.lower()}: {names}")
        closest = get_close_matches(name, known, n=1)
        hint = f"did you mean {known[closest[0]].value}?" if closest else ""
        hint = cls._advice(name) or hint
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
        message = f"no {kind} {shown(text)}; choose from {names}"
        raise BadRequest(f"{message}; {hint}" if hint else message)

    @classmethod
    def _bare(cls, name: str) -> str:
        """A canonical name without what other programs add to it."""
        return name

    @classmethod
    def _advice(cls, name: str) -> str:
        """What to do about another program's name that means something else; empty if unknown."""
        return ""


def _canonical(text: str) -> str:
    """A name without case, spaces, hyphens and underscores, and with ++ for pp."""
    name = re.sub(r"[\s_-]+", "", text.lower())
    return name.replace("dpmpp", "dpm++").replace("cfgpp", "cfg++")


class Schedule(Name):
    """Noise schedules: the spacing of the steps' noise levels."""

    LINEAR = NameRow("linear", "Uniform", ("uniform", "linspace", "normal"))
    LEADING = NameRow("leading", "DDIM")  # A1111's nearest, as for trailing and flow
    TRAILING = NameRow("trailing", "SGM Uniform")
    KARRAS = NameRow("karras", "Karras")
    EXPONENTIAL = NameRow("exponential", "Exponential", ("polyexponential",))  # of rho 1
    SGM_UNIFORM = NameRow("sgm_uniform", "SGM Uniform")
    SIMPLE = NameRow("simple", "Simple")
    DDIM_UNIFORM = NameRow("ddim_uniform", "DDIM", ("ddim",))
    BETA = NameRow("beta", "Beta")
    KL_OPTIMAL = NameRow("kl_optimal", "KL Optimal")
    ALIGN_YOUR_STEPS = NameRow("align_your_steps", "Align Your Steps", ("ays",))
    LINEAR_QUADRATIC = NameRow("linear_quadratic", "Linear Quadratic")
    AUTOMATIC = NameRow("automatic", "Automatic", ("auto",))  # the sampler's, as in A1111
    FLOW = NameRow("flow", "Simple")

    @classmethod
    def _advice(cls, name: str) -> str:
        """Tell samplers from schedules, and name what is nearest to other programs' schedules."""
        if name in _names_of(Sampler):
            return f"it is a sampler: --sampler {_names_of(Sampler)[name]}"
        return f"the nearest is {_OTHER_SCHEDULES[name]}" if name in _OTHER_SCHEDULES else ""


# Theirs without one of ours: the model's own, and stable-diffusion.cpp's word for A1111's Uniform.
SCHEDULE_WORDS = {"Automatic": None, "discrete": Schedule.LINEAR.label}


@dataclass(frozen=True)
class SamplerRow(NameRow):
    """A sampler's name and what other modules need to know of it."""

    evaluations: int = 1  # of the network, each step but the last
    sde: bool = False  # its steps draw increments of one Brownian path
    # What A1111's schedule "Automatic" means for it; None: its steps are its own.
    automatic: Schedule | None = Schedule.LINEAR
    sigma_start: bool = False  # diffusers starts it from sigma · noise, not from unit variance
    whole_times: bool = False  # A1111 draws it by whole times of the table, "CompVis"
    per_picture: bool = False  # its steps depend on the picture: none is drawn beside another
    cfg_divisor: float = 1.0  # of the guidance scale that it is given


class Sampler(Name):
    """The solvers that go from noise to a picture; diffusion/samplers.py has their functions."""

    evaluations: int
    sde: bool
    automatic: Schedule | None
    sigma_start: bool
    whole_times: bool
    per_picture: bool
    cfg_divisor: float

    def __init__(self, row: SamplerRow) -> None:
        self.evaluations, self.sde = row.evaluations, row.sde
        self.automatic, self.sigma_start = row.automatic, row.sigma_start
        self.whole_times, self.per_picture = row.whole_times, row.per_picture
        self.cfg_divisor = row.cfg_divisor

    @classmethod
    def _bare(cls, name: str) -> str:
        """Without k-diffusion's and the first ComfyUI's prefix, and the place of the noise."""
        return re.sub(r"^(k|sample)", "", name).removesuffix("gpu")

    @classmethod
    def _advice(cls, name: str) -> str:
        """Tell schedules from samplers, and name what is nearest to other programs' samplers."""
        if name in _names_of(Schedule):
            return f"it is a schedule: --schedule {_names_of(Schedule)[name]}"
        bare = cls._bare(name).removesuffix("scheduler")
        return f"the nearest is {_OTHER_SAMPLERS[bare]}" if bare in _OTHER_SAMPLERS else ""

    DDPM = SamplerRow("ddpm", "DDPM", ("DDPMScheduler",))
    DDIM = SamplerRow("ddim", "DDIM", ("DDIMScheduler",), automatic=None, whole_times=True)
    EULER = SamplerRow(
        *("euler", "Euler"),
        ("k_euler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
        sigma_start=True,
    )
    EULER_A = SamplerRow(
        "euler_a",
        "Euler a",
        ("euler_ancestral", "k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        sigma_start=True,
    )
    HEUN = SamplerRow(
        "heun", "Heun", ("k_heun", "HeunDiscreteScheduler"), evaluations=2, sigma_start=True
    )
    LMS = SamplerRow("lms", "LMS", ("k_lms", "LMSDiscreteScheduler"), sigma_start=True)
    DPMPP_2M = SamplerRow(
        "dpm++2m", "DPM++ 2M", ("DPMSolverMultistepScheduler",), automatic=Schedule.KARRAS
    )
    DPMPP_2M_SDE = SamplerRow(
        "dpm++2m_sde", "DPM++ 2M SDE", sde=True, automatic=Schedule.EXPONENTIAL
    )
    DPMPP_SDE = SamplerRow(
        *("dpm++sde", "DPM++ SDE", ("DPMSolverSDEScheduler",)),
        evaluations=2,
        sde=True,
        automatic=Schedule.KARRAS,
        sigma_start=True,
    )
    DPMPP_2S_A = SamplerRow(
        *("dpm++2s_a", "DPM++ 2S a", ("dpm++2s_ancestral", "k_dpmpp_2s_a")),
        evaluations=2,
        automatic=Schedule.KARRAS,
        sigma_start=True,
    )
    DPMPP_2M_SDE_HEUN = SamplerRow(
        "dpm++2m_sde_heun", "DPM++ 2M SDE Heun", sde=True, automatic=Schedule.EXPONENTIAL
    )
    DPMPP_3M = SamplerRow("dpm++3m", "DPM++ 3M", automatic=Schedule.KARRAS)
    DPMPP_3M_SDE = SamplerRow(
        "dpm++3m_sde", "DPM++ 3M SDE", sde=True, automatic=Schedule.EXPONENTIAL
    )
    DPM2 = SamplerRow(
        *("dpm2", "DPM2", ("dpm_2", "kdpm_2", "KDPM2DiscreteScheduler")),
        evaluations=2,
        automatic=Schedule.KARRAS,
        sigma_start=True,
    )
    DPM2_A = SamplerRow(
        "dpm2_a",
        "DPM2 a",
        ("dpm_2_ancestral", "kdpm_2_a", "kdpm_2_ancestral", "KDPM2AncestralDiscreteScheduler"),
        evaluations=2,
        automatic=Schedule.KARRAS,
        sigma_start=True,
    )
    DPM_FAST = SamplerRow("dpm_fast", "DPM fast", sigma_start=True)
    DPM_ADAPTIVE = SamplerRow(
        *("dpm_adaptive", "DPM adaptive", ("k_dpm_ad",)),
        evaluations=3,
        sigma_start=True,
        per_picture=True,
    )
    RESTART = SamplerRow("restart", "Restart", evaluations=2, automatic=Schedule.KARRAS)
    PLMS = SamplerRow("plms", "PLMS", ("pndm", "PNDMScheduler"), automatic=None, whole_times=True)
    IPNDM = SamplerRow("ipndm", "IPNDM")
    IPNDM_V = SamplerRow("ipndm_v", "IPNDM_V")
    DEIS = SamplerRow("deis", "DEIS", ("DEISMultistepScheduler",))
    ER_SDE = SamplerRow("er_sde", "ER SDE")
    RES_MULTISTEP = SamplerRow("res_multistep", "Res Multistep")
    RES_MULTISTEP_A = SamplerRow(
        "res_multistep_a", "Res Multistep Ancestral", ("res_multistep_ancestral",)
    )
    EULER_CFGPP = SamplerRow("euler_cfg++", "Euler CFG++")
    EULER_A_CFGPP = SamplerRow("euler_a_cfg++", "Euler a CFG++", ("euler_ancestral_cfg_pp",))
    DDIM_CFGPP = SamplerRow(
        "ddim_cfg++", "DDIM CFG++", automatic=None, whole_times=True, cfg_divisor=12.5
    )
    UNIPC = SamplerRow("unipc", "UniPC", ("unipc_bh2", "UniPCMultistepScheduler"))
    LCM = SamplerRow("lcm", "LCM", ("LCMScheduler",), automatic=None)
    TCD = SamplerRow("tcd", "TCD", ("TCDScheduler",), automatic=None)


class Compat(Name):
    """Programs whose rules a picture may follow: their noise, prompt weights, times (compat.py)."""

    TXT2IMG = NameRow("txt2img", is_default=True)
    A1111 = NameRow("a1111", aliases=("automatic1111", "a1111_cpu"))  # RNG CPU
    A1111_GPU = NameRow("a1111-gpu", aliases=("a1111_nv",))  # RNG GPU or NV
    FORGE = NameRow("forge", aliases=("sd-webui-forge",))
    COMFYUI = NameRow("comfyui", aliases=("comfy",))
    DIFFUSERS = NameRow("diffusers")
    SDCPP = NameRow("sdcpp", aliases=("sd.cpp", "stable-diffusion.cpp"))
    INVOKEAI = NameRow("invokeai")
    NOVELAI = NameRow("novelai")


# Other programs' samplers and schedules that are not here, by canonical name → the nearest.
_OTHER_SAMPLERS = {
    **dict.fromkeys(("gradientestimation", "res2s", "res2m"), Sampler.RES_MULTISTEP),
    **dict.fromkeys(("dpmsolversinglestep", "dpm++2s"), Sampler.DPMPP_2M),
    **dict.fromkeys(("heun++2", "heunpp2", "expheun2x0"), Sampler.HEUN),
    **dict.fromkeys(("sasolver", "saasolver", "seeds2", "seeds3"), Sampler.DPMPP_SDE),
    **dict.fromkeys(("edmeuler", "eulersmea", "eulerdy"), Sampler.EULER),
    **dict.fromkeys(("resmultistepcfg++", "dpm++2mcfg++"), Sampler.EULER_CFGPP),
    **dict.fromkeys(("resmultistepancestralcfg++", "dpm++2sancestralcfg++"), Sampler.EULER_A_CFGPP),
    "cosinedpmsolvermultistep": Sampler.DPMPP_3M_SDE,
}
_OTHER_SCHEDULES = {
    "laplace": Schedule.EXPONENTIAL,
    "turbo": Schedule.SGM_UNIFORM,
    **dict.fromkeys(("gits", "bongtangent", "karrasdynamic"), Schedule.KARRAS),
}


def _names_of(kind: type[Name]) -> dict[str, Name]:
    """Canonical name → member, of all names that a kind has."""
    return {
        _canonical(name): member
        for member in kind
        for name in (*member.aliases, member.label, member.value)
    }


def split_sampler(sampler: str | None, schedule: str | None) -> tuple[str | None, str | None]:
    """Sampler and schedule, from other programs' names.

    Older writers put both in one field: "DPM++ 2M Karras", euler_ancestral_karras. k-diffusion's
    names begin with k_, the first ComfyUI's with sample_, and those of a GPU's noise end in _gpu.
    """
    if sampler:
        sampler = re.sub(r"^(k|sample)_", "", sampler)
        whole = schedule or _canonical(sampler) in _names_of(Schedule)  # ComfyUI's ddim_uniform
        match = None if whole else _JOINED.fullmatch(sampler)
        if match and (match[2] == " " or _is_sampler(match[1])):
            sampler, schedule = match[1], match[3]
        sampler = sampler.removesuffix("_gpu")
    return sampler, SCHEDULE_WORDS.get(schedule or "", schedule)


def _is_sampler(name: str) -> bool:
    try:
        Sampler.parse(name.removesuffix("_gpu"))
    except BadRequest:
        return False
    return True


_SCHEDULE_NAMES = {name for one in Schedule for name in (one.value, one.label, *one.aliases)}
_JOINED = re.compile(
    rf"(.+?)([ _])({'|'.join(map(re.escape, sorted({*_SCHEDULE_NAMES, *SCHEDULE_WORDS})))})",
    re.IGNORECASE,
)
