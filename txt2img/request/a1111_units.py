"""ControlNet units of A1111's extension, by its API's names, as fields of a request.

Other programs' ControlNets, T2I-Adapters and IP-Adapters are read as such units too. Source:
sd-webui-controlnet, internal_controlnet/args.py.
"""

import re
from collections.abc import Iterable, Mapping

from txt2img.errors import BadRequest
from txt2img.request.control import ControlMode, bare_name
from txt2img.request.input_image import UNNAMED, Resize
from txt2img.request.preprocess import Preprocess, Preprocessor, parse_preprocess
from txt2img.system.text import shown

Unit = Mapping[str, object]
# Modules whose numbers A1111 has as the thresholds A and B.
SLIDERS = (
    *(Preprocessor.CANNY, Preprocessor.BLUR, Preprocessor.TILE),
    *(Preprocessor.THRESHOLD, Preprocessor.SCRIBBLE),
)
# Words of A1111's first versions and of InvokeAI.
WORDS = {
    **dict.fromkeys(("inner fit (scale to fit)", "scale to fit (inner fit)"), "crop"),
    **dict.fromkeys(("outer fit (shrink to fit)", "envelope (outer fit)"), "fill"),
    "crop_resize": "crop",
    "crop_resize_simple": "crop",
    "fill_resize": "fill",
    "just_resize_simple": "stretch",
    "more_prompt": "prompt",
    **dict.fromkeys(("more_control", "unbalanced"), "control"),
}
_HASHED = re.compile(r"(.+?)(?:\.(?:safetensors|pth|ckpt|bin))?(?: \[([0-9a-fA-F]{1,64})\])?")
_IP_ADAPTER = re.compile("ip[-_ ]?adapter", re.IGNORECASE)


def unit_fields(units: Iterable[Unit], notes: list[str]) -> dict[str, object]:
    """The fields that units give; a note for what is not carried over of them."""
    controls: list[object] = []
    adapters: list[object] = []
    modules: list[str] = []
    resize: object = None
    modes: list[str] = []
    for number, unit in enumerate(units):
        about = f"ControlNet {number}"
        if (used := _used(unit, about, notes)) is None:
            continue
        model, module = str(unit.get("model")), str(unit.get("module", "none"))
        if _IP_ADAPTER.search(model) or _IP_ADAPTER.search(module):
            images = unit.get("images", [used.pop("image")])
            adapters.append({**used, "images": images})
            continue
        controls.append({**used, **({"type": unit["type"]} if unit.get("type") else {})})
        modules.append(_module(module, unit, about, notes))
        modes.append(_named(ControlMode, unit.get("control_mode"), about, notes))
        resize = resize or _named(Resize, unit.get("resize_mode"), about, notes)
    if len({*modes}) > 1:
        notes.append(f"its ControlNets' modes differ; all are drawn as the first: {modes[0]}")
    values: dict[str, object] = {"controls": controls, "ip_adapters": adapters, "resize": resize}
    values["control_mode"] = modes[0] if modes else None
    values["preprocess"] = modules if {*modules} != {"none"} else None
    return {name: value for name, value in values.items() if value}


def _used(unit: Unit, about: str, notes: list[str]) -> dict[str, object] | None:
    """Model, picture, weight and interval; None for a unit that is off."""
    if unit.get("enabled") in (False, "False"):
        return None
    match = _HASHED.fullmatch(str(unit.get("model") or "None"))
    if match is None or match[1].lower() in ("none", "null"):
        if str(unit.get("module", "none")) not in ("none", "None"):
            notes.append(f"{about}: {shown(unit['module'])} without a model is not carried over")
        return None
    start, end = unit.get("guidance_start", 0), unit.get("guidance_end", 1)
    if isinstance(start, int | float) and isinstance(end, int | float) and not start < end:
        notes.append(f"{about} is on from {start:g} to {end:g}: never")
        return None
    image = unit.get("image") or {"name": UNNAMED}
    return {
        "model": {"name": bare_name(match[1]), "hash": match[2] or ""},
        "image": image,
        "weight": unit.get("weight", 1.0),
        "interval": {"low": start, "high": end},
    }


def _module(module: str, unit: Unit, about: str, notes: list[str]) -> str:
    """The preprocessor of a module's name and thresholds; "none" where there is none here."""
    try:
        kind = Preprocessor.parse(module)
    except BadRequest as error:
        notes.append(f"{about}: {error}; its picture must be the map")
        return Preprocessor.NONE
    if kind.model:
        notes.append(
            f"{about}: {shown(module)} needs a model; its picture must be the map, or say "
            f"--preprocess {kind}:FOLDER"
        )
        return Preprocessor.NONE
    listed = unit.get("numbers")
    given = [unit.get(f"threshold_{letter}") for letter in "ab"] if kind in SLIDERS else []
    given = listed if isinstance(listed, list) else given
    numbers = tuple(n for n in given if isinstance(n, int | float) and n >= 0)
    try:
        return str(Preprocess(kind, numbers[: len(kind.numbers)]))
    except BadRequest as error:
        notes.append(f"{about}: {error}")
        return str(parse_preprocess(kind))


def _named(
    kind: type[ControlMode] | type[Resize], value: object, about: str, notes: list[str]
) -> str:
    """A mode's name, from its number, its label or another program's word; empty for none."""
    text = "" if value is None else str(value)
    labels = {member.label.lower(): member.value for member in kind}
    if text.lower() in (known := labels | WORDS):
        return known[text.lower()]
    try:
        return kind.parse(text).value if text else ""
    except BadRequest as error:
        notes.append(f"{about}: {error}")
        return ""
