"""ControlNets as a request names them: a model, a picture, a weight and an interval each.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models".
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import PurePath
from typing import NamedTuple, TypeVar

from txt2img.errors import BadRequest
from txt2img.request.adapters import FileRef, object_from_json, ref_from_json
from txt2img.request.input_image import NAME_MAX, ImageRef, image_from_json
from txt2img.request.interval import Interval, interval_from_json, parse_interval
from txt2img.request.sampler_names import Name, NameRow
from txt2img.system.text import shown

T = TypeVar("T")

WEIGHT_MAX = 100.0
TEXT_MAX = 3 * NAME_MAX  # characters of an option's text
NONE = "none"  # undoes what a picture or config.toml says
ALL_STEPS = Interval(0.0, 1.0)
SUFFIX = ".safetensors"
# What a sweep may vary of ControlNets and IP-Adapters: the request's field, and its items' part.
CONTROL_PARTS: Mapping[str, tuple[str, str]] = {
    f"{name}_{part}": (f"{name}s", part)
    for name in ("control", "ip_adapter")
    for part in ("weight", "interval")
}
USAGE = "MODEL:IMAGE[:WEIGHT[:START..END]], as canny:edges.png:0.8:0..0.5"
# Kinds of pictures that a Union model tells apart, by its numbers (ComfyUI, control_types.py).
UNION_TYPES: Mapping[str, int] = {
    "openpose": 0,
    "depth": 1,
    **dict.fromkeys(("hed", "pidi", "scribble", "ted", "softedge"), 2),
    **dict.fromkeys(("canny", "lineart", "anime_lineart", "mlsd"), 3),
    "normal": 4,
    **dict.fromkeys(("segment", "seg"), 5),
    "tile": 6,
    **dict.fromkeys(("repaint", "inpaint"), 7),
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_INTERVAL = re.compile(r"[\d.]*\.\.[\d.]*", re.ASCII)
_TYPED = re.compile(f"(.+)[@:]({'|'.join(UNION_TYPES)})", re.DOTALL)
# Windows' drives, and the schemes of addresses.
_DRIVE = re.compile(r"[A-Za-z]:(?=[\\/])|[A-Za-z][A-Za-z0-9+.-]*:(?=//)")


class ControlMode(Name):
    """Which of prompt and ControlNet counts for more; the numbers are A1111's."""

    BALANCED = NameRow("balanced", "Balanced", ("0",), is_default=True)
    PROMPT = NameRow("prompt", "My prompt is more important", ("1", "My prompt is more important"))
    CONTROL = NameRow(
        *("control", "ControlNet is more important"),
        ("2", "guess", "ControlNet is more important"),
    )


class ControlRef(FileRef):
    """A ControlNet by its file's name; until it is found the name may be a path."""

    what = "a ControlNet"


@dataclass(frozen=True)
class Control:
    """A ControlNet and the picture that it follows."""

    model: ControlRef
    image: ImageRef
    weight: float = 1.0
    interval: Interval = ALL_STEPS  # of the steps
    type: str = ""  # a Union model's kind of picture; empty: none in particular

    def __post_init__(self) -> None:
        """Check weight and type. BadRequest."""
        check_weight("control", self.weight, 0.0)
        if self.type not in ("", *UNION_TYPES):
            known = ", ".join(UNION_TYPES)
            raise BadRequest(f"control: no type {shown(self.type)}; known: {known}")

    def __str__(self) -> str:
        """The option's text."""
        named = self.model.name, self.image.name, self.type
        return option_text(named, self.weight, self.interval)


def check_weight(field: str, weight: object, least: float) -> None:
    """Raise BadRequest for a weight that is no number of `least` … WEIGHT_MAX."""
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise BadRequest(f"{field}: a weight must be a number, got {shown(weight)}")
    if not least <= weight <= WEIGHT_MAX:
        raise BadRequest(f"{field}: a weight must be {least:g} … {WEIGHT_MAX:g}, got {weight}")


def option_text(named: Sequence[str], weight: float, interval: Interval) -> str:
    """The option's text: names, then weight and interval unless they are the usual ones."""
    whole = interval == ALL_STEPS
    numbers = [f"{weight:g}"] if weight != 1 or not whole else []
    return ":".join(filter(None, [*named, *numbers, "" if whole else str(interval)]))


def controls_from_json(value: object) -> tuple[Control, ...]:
    """ControlNets from a list of objects or of the option's texts, or from one. BadRequest."""
    return items_from_json(control_from_json, value)


def items_from_json(read: Callable[[object], T], value: object) -> tuple[T, ...]:
    """Items that `read` gives of a list's, or of one alone; "none" is none."""
    listed = value if isinstance(value, list | tuple) else [value]
    return tuple(read(one) for one in listed if one != NONE)


def control_from_json(value: object) -> Control:
    """A ControlNet from a JSON object or the option's text. BadRequest."""
    if isinstance(value, Control):
        return value
    if isinstance(value, str):
        return parse_control(value)
    if not isinstance(value, dict) or not {"model", "image"} <= value.keys():
        raise BadRequest(f"control: {shown(value)} is no object with a model and an image")
    values = {k: FROM_JSON[k](v) if k in FROM_JSON else v for k, v in value.items()}
    return object_from_json(Control, "control", values)


FROM_JSON: Mapping[str, Callable[[object], object]] = {
    "model": partial(ref_from_json, ControlRef, "control"),
    "image": image_from_json,
    "interval": interval_from_json,
}


class Use(NamedTuple):
    """An option's text MODEL:IMAGE[:WEIGHT[:START..END]], taken apart."""

    model: str
    image: str
    weight: float
    interval: Interval
    type: str


def parse_control(text: str) -> Control:
    """Parse MODEL[@TYPE]:IMAGE[:TYPE][:WEIGHT[:START..END]]. BadRequest."""
    use = parse_use(text, "--control", USAGE)
    if match := _TYPED.fullmatch(use.model):
        use = use._replace(model=match[1], type=use.type or match[2])
    return Control(ControlRef(use.model), ImageRef(use.image), *use[2:])


def parse_use(text: str, option: str, usage: str) -> Use:
    """Take an option's text apart from its end, whose parts may be left out. BadRequest.

    File names may hold colons, and those of Windows begin with a drive.
    """
    rest, weight, interval, kind = text, "", ALL_STEPS, ""
    if len(text) > TEXT_MAX:
        raise BadRequest(f"{option} takes {usage}; got {len(text):,} characters")
    while match := re.fullmatch(r"(.+:.+):([^:/\\]*)", rest, re.DOTALL):
        before, last = match.groups()
        if _INTERVAL.fullmatch(last) and interval == ALL_STEPS and not weight:
            interval = parse_interval(last)
        elif _NUMBER.fullmatch(last) and not weight:
            weight = last
        elif last in UNION_TYPES and not kind:
            kind = last
        else:
            break
        rest = before
    model, image = _split(rest, text, option, usage)
    return Use(model, image, float(weight or 1), interval, kind)


def _split(text: str, whole: str, option: str, usage: str) -> tuple[str, str]:
    """Split MODEL:IMAGE, where either may hold colons: at the one after which a file's name is.

    Without such a file, at the one that ends a file's name. BadRequest.
    """
    drives = {match.end() - 1 for match in _DRIVE.finditer(text) if _begins(text, match.start())}
    places = [i for i, sign in enumerate(text) if sign == ":" and i not in drives]
    pairs = [(text[:i].strip(), text[i + 1 :].strip()) for i in places]
    pairs = [pair for pair in pairs if all(pair)]
    if not pairs:
        raise BadRequest(f"{option} is {usage}; got {shown(whole)}")
    for pair in pairs:
        if _exists(pair[1]):
            return pair
    for a, b in combinations(places, 2):
        if _exists(text[a + 1 : b].strip()):
            rest = shown(text[b + 1 :])
            raise BadRequest(f"{option}: {rest} is no WEIGHT[:START..END]; it is {usage}")
    return next((pair for pair in pairs if _exists(pair[0])), pairs[-1])


def _exists(path: str) -> bool:
    return os.path.lexists(os.path.expanduser(path)) if path else False


def _begins(text: str, at: int) -> bool:
    return at == 0 or text[at - 1] == ":"


def bare_name(name: str) -> str:
    """A model's name without folders and ending, as records have it."""
    return PurePath(name.replace("\\", "/")).name.removesuffix(SUFFIX)
