"""Other programs' rules as data: their noise, prompt weights, times and first step.

The facts are those of A1111 1.10.1, ComfyUI 0.3.64, diffusers 0.40, stable-diffusion.cpp (2026).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeVar

from txt2img.errors import BadRequest
from txt2img.request.adapters import FileRef
from txt2img.request.fields import STEPS
from txt2img.request.prompt_syntax import Grammar
from txt2img.request.request import Request
from txt2img.request.sampler_names import Compat, Sampler, Schedule

Ref = TypeVar("Ref", bound=FileRef)

Emphasis = Literal["restore", "from_empty"]
Rng = str  # "cpu": torch's generator on the processor; "nv", "nv:N": Nvidia's Philox


@dataclass(frozen=True)
class PromptRules:
    """Rules by which a prompt becomes chunks of tokens and their hidden states."""

    grammar: Grammar = "a1111"
    emphasis: Emphasis = "restore"  # the chunk's mean, or weights from the empty prompt's states
    backtrack: int = 0  # tokens that a full chunk may give back, to end in a comma
    truncate: bool = False  # what does not fit in one chunk is left out
    clip_skip: int = 1


@dataclass(frozen=True)
class ImageRules:
    """Rules by which a picture becomes the start of another, as `init_image.py` follows them."""

    # How many of the steps are drawn: int(steps · strength); one more (A1111); or all of them, the
    # last of int(steps / strength) (ComfyUI; exact: by A1111 in its hires pass).
    steps_drawn: Literal["floor", "floor_plus_one", "all", "exact"] = "floor"
    flow_rounds_up: bool = False  # "floor" rounds up for flow models (pipeline_flux_img2img.py)
    sampled: bool = False  # a sample of the VAE's distribution, by the seed's first noise, or mean
    # What at strength 1 starts from noise alone: all, or what has a mask.
    pure: Literal["all", "masked", "nothing"] = "all"
    # The mask of latent cells: soft, for thresholds level by level; or theirs.
    cells: Literal["threshold", "rounded", "nearest", "bilinear"] = "threshold"
    seen: Literal["noised", "clean", "free"] = "noised"  # where it is kept; masks.py
    clean_for: frozenset[Sampler] = frozenset()  # samplers for which it is "clean" there
    seen_first: bool = True  # also at the first level
    mask_blur: float = 4.0  # pixels, by default
    # What blurs a mask: Pillow, by boxes; or a sampled Gaussian cut off at 2.5 deviations (A1111).
    blurs: Literal["boxes", "gaussian"] = "boxes"
    pastes: bool = True  # the picture's own pixels over what the mask keeps
    # Whether what an inpainting model keeps, which sees it, is put into its latents as well.
    keeps_of_inpainting: bool = True


@dataclass(frozen=True)
class Rules:
    """One program's rules."""

    program: str = ""  # whose variants of samplers and schedules; "": our own
    prompt: PromptRules = PromptRules()
    init_rng: Rng = "cpu"  # generator of the initial noise
    step_rng: Rng | None = None  # a generator of its own for the noise of steps; None: init_rng
    seed_delta: int = 0  # added to the seed of that generator (ENSD)
    sde_noise: Literal["own", "tree"] | None = None  # which Brownian path SDE solvers draw from
    unit_variance: frozenset[Sampler] = frozenset()  # samplers that start from noise of variance 1
    unit_variance_if_leading: bool = False  # all samplers do with the schedule leading
    unit_variance_at_top: bool = False  # all samplers do from the table's noisiest entry
    prompt_editing: bool = False  # [a:b:0.5] and AND mean something
    strict_edits: bool = False  # malformed brackets are read as A1111's parser does
    edits_one_step_late: bool = False
    trailing_weight: bool = False  # a number at a prompt's end is its weight, with or without AND
    integer_times: frozenset[Sampler] = frozenset()  # samplers whose times are rounded
    without_penultimate: frozenset[Sampler] = frozenset()  # samplers whose last level but one goes
    # Samplers of whole times (DDIM, PLMS) stop at the table's second entry, as in A1111.
    old_ddim: bool = False
    skip_negative: bool = True  # clip skip applies to the negative prompt too
    no_padding: bool = False  # a short prompt gets no empty chunks to match a long one
    zero_empty_negative: bool = True  # an empty negative is zeros, in families trained that way
    soft_control: bool = False  # a ControlNet that counts for more is soft in its outer blocks
    image: ImageRules = ImageRules()


ALL_SAMPLERS = frozenset(Sampler)
# modules/rng.py: a generator a picture. sd_samplers_timesteps.py: DDIM, UniPC start unscaled.
# prompt_parser.py: reconstruct_cond_batch counts calls from 0, steps from 1. sd_emphasis.py:
# EmphasisOriginal. sd_hijack_clip.py: comma_padding_backtrack 20.
OF_TIMES = frozenset(sampler for sampler in Sampler if sampler.whole_times)
A1111 = Rules(
    program="a1111",
    prompt=PromptRules(backtrack=20),
    sde_noise="tree",  # modules/sd_samplers_kdiffusion.py: of the seed alone, without ENSD
    unit_variance=OF_TIMES | {Sampler.UNIPC},
    prompt_editing=True,
    strict_edits=True,
    edits_one_step_late=True,
    trailing_weight=True,
    old_ddim=True,
    # sd_samplers_kdiffusion.py: discard_next_to_last_sigma.
    without_penultimate=frozenset({Sampler.DPM2, Sampler.DPM2_A, Sampler.DPMPP_3M_SDE}),
    no_padding=True,  # sd_samplers_cfg_denoiser.py: two passes, unless "Pad conds" is on
    soft_control=True,  # sd-webui-controlnet, scripts/hook.py: soft_injection in both other modes
    # sd_samplers_common.py: setup_img2img_steps; processing.py: the mask is rounded;
    # sd_samplers_cfg_denoiser.py: apply_blend.
    image=ImageRules(
        "floor_plus_one",
        pure="nothing",
        cells="rounded",
        blurs="gaussian",
        seen="free",
        clean_for=OF_TIMES | {Sampler.UNIPC},  # mask_before_denoising
    ),
)
# scheduling_*_discrete.py: init_noise_sigma is 1 but for samplers of slopes, whose is
# √(σ² + 1) only for leading; DPM++ 2M and UniPC round the times of karras sigmas.
DIFFUSERS = Rules(
    program="diffusers",
    prompt=PromptRules("text", truncate=True),
    skip_negative=False,  # pipeline_stable_diffusion.py: encode_prompt
    unit_variance=frozenset(sampler for sampler in Sampler if not sampler.sigma_start),
    unit_variance_if_leading=True,
    integer_times=frozenset({Sampler.DPMPP_2M, Sampler.DPMPP_2M_SDE, Sampler.UNIPC}),
    # pipeline_stable_diffusion_img2img.py, …_inpaint.py: get_timesteps, is_strength_max.
    image=ImageRules(
        sampled=True,
        flow_rounds_up=True,
        pure="masked",
        cells="nearest",
        seen_first=False,
        mask_blur=0.0,
        pastes=False,
        keeps_of_inpainting=False,
    ),
)
RULES: Mapping[Compat | None, Rules] = {
    None: Rules(prompt_editing=True, sde_noise="own"),
    Compat.A1111: A1111,
    Compat.A1111_GPU: replace(A1111, init_rng="nv"),
    # backend/modules/k_prediction.py: the nearest entry's time.
    Compat.FORGE: replace(A1111, init_rng="nv", integer_times=ALL_SAMPLERS),
    # comfy/sample.py prepare_noise: on the processor. k_diffusion/sampling.py: steps draw on the
    # latent's device, Nvidia's here. model_sampling.py: noise_scaling's max_denoise, integer
    # timestep(). sd1_clip.py: weights. samplers.py: DISCARD_PENULTIMATE_SIGMA_SAMPLERS.
    Compat.COMFYUI: Rules(
        program="comfyui",
        prompt=PromptRules("comfyui", "from_empty"),
        step_rng="nv",
        sde_noise="tree",  # cpu=True: of the initial noise's generator
        unit_variance_at_top=True,
        integer_times=ALL_SAMPLERS,
        without_penultimate=frozenset({Sampler.UNIPC, Sampler.DPM2, Sampler.DPM2_A}),
        no_padding=True,  # conds.py: repeated as a whole, which changes nothing
        zero_empty_negative=False,
        # samplers.py: KSampler.set_steps, KSamplerX0Inpaint.
        image=ImageRules("all", pure="nothing", cells="bilinear", mask_blur=0.0, pastes=False),
    ),
    Compat.DIFFUSERS: DIFFUSERS,
    # rng_philox.hpp is the default generator, conditioner.hpp weights as A1111's.
    Compat.SDCPP: Rules(
        init_rng="nv", no_padding=True, image=ImageRules("floor_plus_one", pure="nothing")
    ),
    # Its weights are compel's, which are not supported: (word)1.2 is text.
    Compat.INVOKEAI: replace(DIFFUSERS, image=ImageRules()),
    # A1111 reads its pictures with ENSD 31337 (infotext_utils.py); clip skip comes in the record.
    Compat.NOVELAI: replace(A1111, init_rng="nv", seed_delta=31337),
}


def rules(request: Request) -> Rules:
    """The rules that a request asks for."""
    return _rules(request.compat, request.clip_skip or 1, request.ensd, request.rng)


@lru_cache(maxsize=64)
def _rules(compat: Compat | None, clip_skip: int, ensd: int | None, rng: str | None) -> Rules:
    program = RULES[compat]
    program = replace(program, prompt=replace(program.prompt, clip_skip=clip_skip))
    if ensd is not None:
        program = replace(program, seed_delta=ensd)
    if rng is None:
        return program
    init_rng, _, step_rng = rng.partition(",")
    if step_rng:
        return replace(program, init_rng=init_rng, step_rng=step_rng)
    # If initial noise is the CPU's and step noise the GPU's (ComfyUI), --rng selects the latter.
    return replace(program, step_rng=rng) if program.step_rng else replace(program, init_rng=rng)


def canonical(request: Request) -> Request:
    """The request without settings that change nothing, so that equal pictures compare equal."""
    init_rng = None if request.rng is None else request.rng.partition(",")[0]
    for name, values in {"rng": (None, init_rng), "ensd": (None,), "clip_skip": (None,)}.items():
        for value in values if getattr(request, name) is not None else ():
            other = request.changed(**{name: value})
            if rules(other) == rules(request):
                request = other
                break
    if not request.subseed_strength and request.subseed is not None:
        request = request.changed(subseed=None)
    if not request.has_input:
        return request
    # Whatever the files are called.
    controls = tuple(replace(one, model=_by_hash(one.model)) for one in request.controls)
    adapters = tuple(
        replace(one, model=_by_hash(one.model), encoder=one.encoder and _by_hash(one.encoder))
        for one in request.ip_adapters
    )
    made = tuple(
        replace(one, model=one.hash, detector="") if one.hash else one for one in request.preprocess
    )
    request = request.changed(controls=controls, ip_adapters=adapters, preprocess=made)
    return request.with_images(lambda ref: replace(ref, name=ref.hash) if ref.hash else ref)


def _by_hash(ref: Ref) -> Ref:
    return replace(ref, name=ref.hash) if ref.hash else ref


def starts_at_unit_variance(
    program: Rules, request: Request, at_top: bool, from_noise: bool = True
) -> bool:
    """Whether a picture starts from noise of variance 1, not scaled by its first level's sigma.

    `at_top` says that this level is the noisiest of the model's table. Unless it starts
    `from_noise` alone, what it begins from is noised by the sigma, but in ComfyUI (noise_scaling).
    """
    if not from_noise:
        return program.unit_variance_at_top and at_top
    leading = program.unit_variance_if_leading and request.schedule is Schedule.LEADING
    top = program.unit_variance_at_top and at_top
    return request.sampler in program.unit_variance or leading or top


@dataclass(frozen=True)
class Steps:
    """The steps of a schedule, and how many of them, the last ones, are drawn."""

    total: int
    drawn: int


def steps_of(request: Request, program: Rules) -> Steps:
    """The steps of a filled request: all, or the later ones of one that begins from a picture.

    At strength 0 none is drawn, by whosever rules. BadRequest for a schedule of too many.
    """
    steps = request.steps or 0
    if request.image is None or request.strength is None:
        return Steps(steps, steps)
    strength, rule = request.strength, program.image.steps_drawn
    if request.sigmas is not None:
        rule = "floor"  # there are no levels but these
    if not strength:
        return Steps(steps, 0)
    if rule == "all" and strength > 0.9999:
        return Steps(steps, steps)
    if rule == "all":
        return Steps(_bounded(steps / strength, strength), steps)
    ddim = follows_old_ddim(request, program)
    if rule == "exact":
        total = _bounded(steps / min(strength, 0.999), strength)
        return Steps(total, max(steps - 2, 0) if ddim else steps)
    if rule == "floor_plus_one":
        encoded = int(min(strength, 0.999) * steps)  # A1111's t_enc
        if ddim:
            return Steps(steps, max(encoded - 1, 0))
        return Steps(steps, min(encoded + 1, steps))
    if program.image.flow_rounds_up and request.schedule is Schedule.FLOW:
        return Steps(steps, steps - int(steps - steps * strength))
    return Steps(steps, min(int(steps * strength), steps))


def follows_old_ddim(request: Request, program: Rules) -> bool:
    """Whether the steps of a filled request are A1111's for samplers of whole times."""
    return program.old_ddim and request.sampler is not None and request.sampler.whole_times


def _bounded(steps: float, strength: float) -> int:
    if steps >= STEPS.stop:
        raise BadRequest(
            f"strength {strength:g} makes a schedule of {int(steps):,} steps by these rules; at "
            f"most {STEPS[-1]:,}: take a larger one, or fewer steps"
        )
    return int(steps)
