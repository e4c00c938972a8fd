"""Request: everything that decides a picture, frozen; it travels in the picture's file."""

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from txt2img.errors import BadRequest
from txt2img.request.adapters import Refiner, VAERef, sparse_json
from txt2img.request.control import Control
from txt2img.request.enhance import Enhancer
from txt2img.request.fields import FIELDS, SEEDS, SIDES, Field, RequestFields
from txt2img.request.input_image import ImageRef, Margins, map_images
from txt2img.request.interval import Interval
from txt2img.request.ip_adapter import IPAdapterUse
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.request.sampler_names import Name, Sampler, Schedule
from txt2img.request.sampling import parse_sigmas
from txt2img.request.upscalers import UpscalerRef
from txt2img.system.text import nearest_or_all, shown

HIRES = tuple(name for name in FIELDS if name.startswith("hires"))
PICTURES = tuple(
    name
    for name, row in FIELDS.items()
    if row.kind is ImageRef or (row.listed and name != "preprocess")
)
BOOLS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
OBJECTS = VAERef | Refiner | Interval | ImageRef | Margins | UpscalerRef | Enhancer  # in JSON
PROMPT_MAX = 65_536  # characters; keeps each of a picture's text chunks under 1 MiB


@dataclass(frozen=True)
class Defaults:
    """A model's defaults, which fill the blanks of a Request."""

    width: int
    height: int
    steps: int
    cfg: float
    sampler: Sampler
    schedule: Schedule
    cfg_rescale: float = 0.0
    cfg_interval: Interval | None = None
    strength: float = 0.75  # with a picture to begin from
    lora: str = ""  # the model's own few-step LoRA, used where a request sets nothing of this
    guidance: float | None = None
    hires_strength: float = 0.7  # with a second pass


@dataclass(frozen=True)
class Request(RequestFields):
    """A request for pictures; its fields are declared in fields.py. BadRequest if out of range."""

    def __post_init__(self) -> None:
        """Check every field, so that a Request that exists can be drawn.

        A picture may be given by its path.
        """
        for name in ("image", "mask"):
            if isinstance(path := getattr(self, name), str | Path):
                object.__setattr__(self, name, ImageRef(str(path)))
        for name in FIELDS:
            _check(name, getattr(self, name))

    def changed(self, **changes: object) -> "Request":
        """The request with other values, the only ones to be checked; itself if all are the same.

        `replace` checks every field, which takes most of the time of a batch of 100,000 lines.
        """
        new = {name: value for name, value in changes.items() if getattr(self, name) != value}
        if not new:
            return self
        for name, value in new.items():
            _check(name, value)
        request = object.__new__(Request)
        vars(request).update(vars(self) | new)
        return request

    def filled(self, defaults: Defaults) -> "Request":
        """The request with defaults for what is None but the seed; no other place fills them in."""
        blanks = {
            f.name: getattr(defaults, f.name)
            for f in fields(defaults)
            if getattr(self, f.name, "") is None
            if (self.image or f.name != "strength")
            if (self.has_hires or f.name != "hires_strength")
        }
        if self.schedule is Schedule.AUTOMATIC:
            sampler = self.sampler or defaults.sampler
            blanks["schedule"] = sampler.automatic or defaults.schedule
        if self.sigmas is not None:
            blanks["steps"] = self._steps_of_sigmas(self.sigmas)
        return self.changed(**blanks)

    def _steps_of_sigmas(self, sigmas: str) -> int:
        """The steps between given levels. BadRequest for another number of steps."""
        count = len(parse_sigmas(sigmas)) - 1
        if self.steps not in (None, count):
            raise BadRequest(f"sigmas has levels of {count} steps; leave out --steps {self.steps}")
        return count

    def seeded(self) -> "Request":
        """The request with a seed: its own, or a random one below 2^32."""
        return self if self.seed is not None else self.changed(seed=secrets.randbelow(2**32))

    def nth(self, i: int) -> "Request":
        """The request of the i-th picture alone: seed + i, count 1.

        With a variation seed, that one is counted up instead, as A1111 does.
        """
        if self.seed is None:
            raise BadRequest("a request without a seed has no n-th picture; give it a seed")
        if not i and self.count == 1:
            return self
        if self.subseed is not None and self.subseed_strength:
            return self.changed(subseed=(self.subseed + i) % SEEDS, count=1)
        return self.changed(seed=(self.seed + i) % SEEDS, count=1)

    @property
    def has_input(self) -> bool:
        """Whether it names a picture, or something that needs one."""
        return any(getattr(self, name) for name in PICTURES) or self.outpaint is not None

    @property
    def control_weight(self) -> str:
        """The weights of its ControlNets, as a sweep and its names show them."""
        return "+".join(f"{one.weight:g}" for one in self.controls)

    @property
    def control_interval(self) -> str:
        """The intervals of its ControlNets, likewise."""
        return "+".join(str(one.interval) for one in self.controls)

    @property
    def ip_adapter_weight(self) -> str:
        """The weights of its IP-Adapters, likewise."""
        return "+".join(f"{one.weight:g}" for one in self.ip_adapters)

    @property
    def ip_adapter_interval(self) -> str:
        """The intervals of its IP-Adapters, likewise."""
        return "+".join(str(one.interval) for one in self.ip_adapters)

    def preprocess_of(self, number: int) -> Preprocess | None:
        """What makes the map of a ControlNet's picture; None where the picture is the map.

        BadRequest if there are neither one preprocessor nor as many as ControlNets.
        """
        if len(self.preprocess) not in (0, 1, len(self.controls)):
            raise BadRequest(
                f"{len(self.preprocess)} times --preprocess for {len(self.controls)} ControlNets; "
                "give one for all, or one for each in their order (none leaves a picture as it is)"
            )
        how = self.preprocess[number % len(self.preprocess)] if self.preprocess else None
        return None if how is None or how.name is Preprocessor.NONE else how

    def with_images(self, change: Callable[[ImageRef], ImageRef]) -> "Request":
        """The request with each of its pictures changed."""
        named = {name: value for name in PICTURES if (value := getattr(self, name))}
        return self.changed(**{name: map_images(value, change) for name, value in named.items()})

    @property
    def images(self) -> list[ImageRef]:
        """All pictures that it names."""
        found: list[ImageRef] = []

        def keep(ref: ImageRef) -> ImageRef:
            found.append(ref)
            return ref

        self.with_images(keep)
        return found

    @property
    def has_hires(self) -> bool:
        """Whether it asks for a second pass, or has something that needs one."""
        return any(getattr(self, name) is not None for name in HIRES)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; those of later versions only if not at their default."""
        return {
            name: value if value is None or type(value) in _PLAIN else _json_value(value)
            for name, field in FIELDS.items()
            if (value := getattr(self, name)) != field.default or not field.omitted
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> "Request":
        """A request from JSON values. BadRequest for what is unknown, missing or out of range."""
        _check_names(values)
        if "prompt" not in values:
            raise BadRequest('a request needs a "prompt"')
        make: Callable[..., Request] = cls
        return make(**{name: _value(name, values[name]) for name in values})

    def with_json(self, values: Mapping[str, object]) -> "Request":
        """The request with JSON values in place of its own. BadRequest as `from_json`."""
        _check_names(values)
        return self.changed(**{name: _value(name, values[name]) for name in values})


_PLAIN = (str, int, float, bool)
SPARSE = Control | IPAdapterUse | Preprocess  # in JSON without what is at its default


def _json_value(value: object) -> object:
    """A field's value for JSON."""
    if isinstance(value, tuple):
        return tuple(sparse_json(x) if isinstance(x, SPARSE) else asdict(x) for x in value)
    return asdict(value) if isinstance(value, OBJECTS) else value


def _check_names(values: Mapping[str, object]) -> None:
    """Raise BadRequest for the name of no field."""
    unknown = next((key for key in values if key not in FIELDS), None)
    if unknown is not None:
        hint = nearest_or_all(unknown, FIELDS)
        raise BadRequest(f"no request has a field {shown(unknown)}{hint}")


def check_text(name: str, text: object) -> None:
    """Raise BadRequest unless `text` is valid UTF-8 without NUL, and not too long."""
    if not isinstance(text, str):
        raise BadRequest(f"{name} must be text, got {shown(text)}")
    if len(text) > PROMPT_MAX:
        raise BadRequest(f"{name} has {len(text):,} characters; at most {PROMPT_MAX:,} are allowed")
    if "\0" in text:
        raise BadRequest(f"{name} holds a NUL character; remove it")
    if not text.isascii() and any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        raise BadRequest(f"{name} is not valid UTF-8 text: {shown(text)}")


def size_problem(name: str, value: int, factor: int) -> str:
    """The message for a width or height that is not a multiple of `factor` pixels."""
    low = value // factor * factor
    near = [str(n) for n in (low, low + factor) if SIDES.start <= n <= SIDES[-1]]
    return f"{name} must be a multiple of {factor}, got {value}; the nearest: {' or '.join(near)}"


def _check_text(field: Field, value: object) -> None:
    if field.pattern and not (isinstance(value, str) and re.fullmatch(field.pattern, value)):
        raise BadRequest(f"{field.label} must be {field.pattern_help}; got {shown(value)}")
    check_text(field.name, value)
    if field.parse and isinstance(value, str):
        field.parse(value)


def _check_int(field: Field, value: object) -> None:
    name, allowed = field.label, field.allowed
    assert allowed is not None, f"{name} needs a range in fields.py"
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequest(f"{name} must be a whole number, got {shown(value)}")
    if not allowed.start <= value <= allowed[-1]:
        top = "2^64-1" if allowed.stop == SEEDS else f"{allowed[-1]:,}"
        raise BadRequest(f"{name} must be {allowed.start} … {top}, got {_digits(value)}")
    if value not in allowed:
        raise BadRequest(size_problem(name, value, allowed.step))


def _check_float(field: Field, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{field.label} must be a number, got {shown(value)}")
    if not 0 <= value <= field.maximum:
        raise BadRequest(f"{field.label} must be 0 … {field.maximum:g}, got {_digits(value)}")


def _check_bool(field: Field, value: object) -> None:
    if not isinstance(value, bool):
        raise BadRequest(f"{field.name} must be true or false, got {shown(value)}")


_CHECKS: Mapping[type, Callable[[Field, object], None]] = {
    bool: _check_bool,
    str: _check_text,
    int: _check_int,
    float: _check_float,
}


def _check(name: str, value: object) -> None:
    """Raise BadRequest for a field's value that is out of range."""
    field = FIELDS[name]
    if (value is not None or not field.optional) and field.kind in _CHECKS:
        _CHECKS[field.kind](field, value)


def _digits(value: float) -> str:
    """A number for a message, which may have thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length():,} bits"
    return str(value)


def _value(name: str, value: object) -> object:
    """A JSON value as its field's type; wrong values pass, for the checks to refuse."""
    field = FIELDS[name]
    if value is None and field.optional:
        return None
    if field.from_json is not None:
        return field.from_json(value)
    if issubclass(field.kind, Name):
        if any(str(value) in member.aliases for member in field.kind):
            value = str(value)  # some are numbers
        value = str(value) if isinstance(value, bool) else value
        if not isinstance(value, str):
            raise BadRequest(f"{name} must be a name, got {shown(value)}")
        member = field.kind.parse(value)
        return None if member.is_default else member
    if field.parse and type(value) in (int, float):
        return str(value)
    if field.kind is bool and str(value).lower() in BOOLS:
        return BOOLS[str(value).lower()]
    if field.kind is float and type(value) is int and value.bit_length() < 64:
        return float(value)
    return value
