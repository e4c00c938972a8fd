"""All that decides a picture: one frozen Request, which travels in the picture's own file."""

import re
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, Self

from txt2img.errors import BadRequest
from txt2img.request.adapters import FROM_JSON, Embedding, Lora, OtherVAE, Refiner
from txt2img.request.interval import Interval
from txt2img.system.text import nearest_or_all, shown

SEEDS = 2**64
STEPS = range(1, 10_001)
REUSES = range(1, 101)  # 1 is none
SIDES = range(64, 8193, 8)
COUNTS = range(1, 100_001)
FLOAT_MAX = sys.float_info.max
PROMPT_MAX = 65_536  # characters; keeps each of a picture's text chunks under 1 MiB


class _Name(StrEnum):
    """Names that are read forgivingly: case, spaces, hyphens and underscores do not matter."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The member that `text` names; BadRequest lists the names and the nearest."""
        wanted = _plain(text)
        known = {_plain(member.value): member for member in cls}
        known |= {alias: cls(name) for alias, name in ALIASES.items() if name in set(cls)}
        if wanted in known:
            return known[wanted]
        near = get_close_matches(wanted, known, n=1)
        hint = f"; did you mean {known[near[0]].value}?" if near else ""
        names = ", ".join(member.value for member in cls)
        raise BadRequest(f"no {cls.__name__.lower()} {shown(text)}; choose from {names}{hint}")


class Sampler(_Name):
    """The ways from noise to picture."""

    DDPM = "ddpm"
    DDIM = "ddim"
    EULER = "euler"
    EULER_A = "euler_a"
    HEUN = "heun"
    LMS = "lms"
    DPMPP_2M = "dpm++2m"
    DPMPP_2M_SDE = "dpm++2m_sde"
    DPMPP_SDE = "dpm++sde"
    UNIPC = "unipc"
    LCM = "lcm"
    TCD = "tcd"


class Schedule(_Name):
    """The ways to spread the steps over the noise."""

    LINEAR = "linear"
    LEADING = "leading"
    TRAILING = "trailing"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    FLOW = "flow"


class Compat(_Name):
    """Whose rules a picture is drawn by: their noise, prompt weights and times (compat.py)."""

    TXT2IMG = "txt2img"
    A1111 = "a1111"  # its noise from the processor: RNG CPU
    A1111_GPU = "a1111-gpu"  # its noise from a graphics card: RNG GPU or NV
    FORGE = "forge"
    COMFYUI = "comfyui"
    DIFFUSERS = "diffusers"
    SDCPP = "sdcpp"
    INVOKEAI = "invokeai"
    NOVELAI = "novelai"


# What other programs call the same thing, in the form that _plain gives.
ALIASES = {
    "eulerancestral": "euler_a",
    "keulera": "euler_a",
    "keulerancestral": "euler_a",
    "keuler": "euler",
    "kheun": "heun",
    "klms": "lms",
    "unipcbh2": "unipc",
    "uniform": "linear",
    "linspace": "linear",
    "normal": "linear",
    "ddim": "leading",
    "ddimuniform": "leading",
    "sgmuniform": "trailing",
    "simple": "trailing",
    "automatic1111": "a1111",
    "a1111cpu": "a1111",
    "a1111nv": "a1111-gpu",
    "sdwebuiforge": "forge",
    "comfy": "comfyui",
    "sd.cpp": "sdcpp",
    "stablediffusion.cpp": "sdcpp",
}
NAMED: Mapping[str, type[Sampler] | type[Schedule] | type[Compat]] = {
    "sampler": Sampler,
    "schedule": Schedule,
    "compat": Compat,
}
CLIP_SKIPS = range(1, 13)  # 1 is none
# Fields that came later: left out of a record at their defaults, so that older ones stay equal.
LATER = (
    *("compat", "clip_skip", "subseed", "subseed_strength"),
    *("refiner", "refiner_switch", "cfg_interval", "ensd", "rng", "reuse", "token_merging"),
)
WHOLE = {  # fields that are whole numbers
    "steps": STEPS,
    "seed": range(SEEDS),
    "count": COUNTS,
    "clip_skip": CLIP_SKIPS,
    "subseed": range(SEEDS),
    "ensd": range(SEEDS),
    "reuse": REUSES,
}
MOST = {  # fields that are numbers from 0 up
    "cfg": FLOAT_MAX,
    "eta": 1.0,
    "cfg_rescale": 1.0,
    "subseed_strength": 1.0,
    "refiner_switch": 1.0,
    "token_merging": 0.75,  # one of each four tokens stays
}
RNG = re.compile(r"(cpu|nv(:[1-9]\d{0,9})?)(,(cpu|nv(:[1-9]\d{0,9})?))?")
SWITCH = 0.8  # where A1111 and diffusers let the refiner take over


@dataclass(frozen=True)
class Defaults:
    """What a family of models draws best with: fills the blanks of a Request."""

    width: int
    height: int
    steps: int
    cfg: float
    sampler: Sampler
    schedule: Schedule


@dataclass(frozen=True)
class Request:
    """One wish for pictures; None means that the model decides. BadRequest if out of range."""

    prompt: str
    negative: str = ""
    model: str = "default"
    width: int | None = None  # pixels
    height: int | None = None
    steps: int | None = None
    cfg: float | None = None
    cfg_rescale: float = 0.0
    eta: float | None = None
    sampler: Sampler | None = None
    schedule: Schedule | None = None
    seed: int | None = None
    count: int = 1
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    vae: OtherVAE | None = None  # in place of the model's own
    template: str = ""  # what the prompt was made from, if from wildcards
    negative_template: str = ""
    compat: Compat | None = None  # whose rules; None: our own
    clip_skip: int | None = None  # A1111's count: the text encoder's last layers, 1 is all of it
    subseed: int | None = None  # the noise of another seed, mixed into this one's
    subseed_strength: float = 0.0
    refiner: Refiner | None = None  # the model that draws the last steps
    refiner_switch: float = SWITCH  # the part of the way from noise to picture before them
    cfg_interval: Interval | None = None  # where on that way guidance is; None: everywhere
    ensd: int | None = None  # A1111's eta noise seed delta: what the steps' seed is more
    # Where numbers come from: cpu, nv, or nv:N, a card of N threads; after a comma, the steps'.
    rng: str | None = None
    reuse: int = 1  # the network's deep layers are computed in every so many-th step
    token_merging: float = 0.0  # the part of a map's tokens that attend as one with others

    def __post_init__(self) -> None:
        """Check every field, so that a Request that exists can be drawn."""
        for name in ("prompt", "negative", "model", "template", "negative_template"):
            check_text(name, getattr(self, name))
        for name in ("width", "height"):
            _check_side(name, getattr(self, name))
        for name, allowed in WHOLE.items():
            _check_int(name, getattr(self, name), allowed)
        if self.rng is not None and not RNG.fullmatch(str(self.rng)):
            raise BadRequest(
                "rng must be cpu, nv or nv:THREADS, or two of them with a comma between: the "
                f"start's and the steps'; got {shown(self.rng)}"
            )
        for name, top in MOST.items():
            _check_float(name, getattr(self, name), top)

    def filled(self, defaults: Defaults) -> "Request":
        """The same with nothing left to decide but the seed: the only place None gets a value."""
        blanks = {
            f.name: getattr(defaults, f.name)
            for f in fields(defaults)
            if getattr(self, f.name) is None
        }
        return replace(self, **blanks)

    def seeded(self) -> "Request":
        """The same with a random seed below 2^32 if it has none."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**32))

    def nth(self, i: int) -> "Request":
        """The i-th picture of this request as a request of its own: seed + i, one picture.

        Where a second seed is mixed in, that is the one which is counted, as A1111 does.
        """
        if self.seed is None:
            raise BadRequest("a request without a seed has no n-th picture; give it a seed")
        if not i and self.count == 1:
            return self
        if self.subseed is not None and self.subseed_strength:
            return replace(self, subseed=(self.subseed + i) % SEEDS, count=1)
        return replace(self, seed=(self.seed + i) % SEEDS, count=1)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values, in their order; later ones only if they say something."""
        values = {name: getattr(self, name) for name in _NAMES}
        return {
            name: _plain_value(value)
            for name, value in values.items()
            if name not in _PLAIN or value != _PLAIN[name]
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Request":
        """The request of such values; BadRequest names what is unknown, missing or wrong."""
        _check_names(values)
        if "prompt" not in values:
            raise BadRequest('a request needs a "prompt"')
        make: Callable[..., Request] = cls
        return make(**{name: _value(name, values[name]) for name in values})

    def with_json(self, values: Mapping[str, object]) -> "Request":
        """The same with such values in place of its own; BadRequest as `from_json`."""
        _check_names(values)
        change: Callable[..., Request] = replace
        return change(self, **{name: _value(name, values[name]) for name in values})


_NAMES = [f.name for f in fields(Request)]
_PLAIN = {f.name: f.default for f in fields(Request) if f.name in LATER}


def _plain_value(value: object) -> object:
    """A field's value as JSON has it."""
    if isinstance(value, tuple):
        return tuple(asdict(item) for item in value)
    return asdict(value) if isinstance(value, OtherVAE | Refiner | Interval) else value


def _check_names(values: Mapping[str, object]) -> None:
    """Raise BadRequest if values are of fields that no request has."""
    unknown = next((key for key in values if key not in _NAMES), None)
    if unknown is not None:
        hint = nearest_or_all(unknown, _NAMES)
        raise BadRequest(f"no request has a field {shown(unknown)}{hint}")


def check_text(name: str, text: object) -> None:
    """Raise BadRequest unless `text` is text that can be written in a file: no NUL, real UTF-8."""
    if not isinstance(text, str):
        raise BadRequest(f"{name} must be text, got {shown(text)}")
    if len(text) > PROMPT_MAX:
        raise BadRequest(f"{name} has {len(text):,} characters; at most {PROMPT_MAX:,} are allowed")
    if "\0" in text:
        raise BadRequest(f"{name} holds a NUL character; remove it")
    if not text.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise BadRequest(f"{name} is not valid UTF-8 text: {shown(text)}")


def _plain(text: str) -> str:
    """A name without case, spaces, hyphens and underscores, and with ++ for pp."""
    return re.sub(r"[\s_-]+", "", text.lower()).replace("dpmpp", "dpm++")


def _check_int(name: str, value: object, allowed: range) -> None:
    if value is None and name not in ("count", "reuse"):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(f"{name} must be a whole number, got {shown(value)}")
    if value not in allowed:
        top = "2^64-1" if allowed.stop == SEEDS else f"{allowed[-1]:,}"
        raise BadRequest(f"{name} must be {allowed.start} … {top}, got {_digits(value)}")


def _check_side(name: str, value: object) -> None:
    _check_int(name, value, range(SIDES.start, SIDES[-1] + 1))
    if isinstance(value, int) and value not in SIDES:
        raise BadRequest(size_problem(name, value, SIDES.step))


def size_problem(name: str, value: int, factor: int) -> str:
    """What to say of a width or height that is not a multiple of `factor` pixels."""
    low = value // factor * factor
    near = [str(n) for n in (low, low + factor) if SIDES.start <= n <= SIDES[-1]]
    return f"{name} must be a multiple of {factor}, got {value}; the nearest: {' or '.join(near)}"


def _check_float(name: str, value: object, top: float) -> None:
    if value is None and name in ("cfg", "eta"):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{name} must be a number, got {shown(value)}")
    if not 0 <= value <= top:
        allowed = f"0 … {top:g}" if top < FLOAT_MAX else "a finite number, at least 0"
        raise BadRequest(f"{name} must be {allowed}, got {_digits(value)}")


def _digits(value: float) -> str:
    """A number for a message, however many digits it has."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length():,} bits"
    return str(value)


def _value(name: str, value: object) -> object:
    """A JSON value as its field's type; what is wrong stays as it is, for the checks to find."""
    if name in FROM_JSON:
        return FROM_JSON[name](value)
    if name in NAMED and value is not None:
        if not isinstance(value, str):
            raise BadRequest(f"{name} must be a name, got {shown(value)}")
        member = NAMED[name].parse(value)
        return None if member is Compat.TXT2IMG else member
    if name in MOST and type(value) is int and value.bit_length() < 64:
        return float(value)
    return value
