"""ControlNets in A1111's text, as sd-webui-controlnet's infotext writes and wrote its units."""

import re
from collections.abc import Mapping

from txt2img.request import Request
from txt2img.request.a1111_units import SLIDERS, unit_fields
from txt2img.request.control import Control, ControlMode
from txt2img.request.input_image import Resize
from txt2img.request.ip_adapter import IPAdapterUse
from txt2img.request.preprocess import Preprocess, Preprocessor

THRESHOLDS = ("Threshold A", "Threshold B")  # a module's numbers
KEY = re.compile(r"ControlNet(?:[ -](\d{1,2}))?(?: ([A-Z][A-Za-z ]+))?")
_PAIR = re.compile(r"([A-Za-z][A-Za-z /]*): (.*?)(?=, [A-Za-z][A-Za-z /]*: |$)")
_CLIP_G = re.compile(r"bigg|(clip|vision)[_ ]g\b", re.IGNORECASE)
_NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
# Names of settings in the texts of early versions.
NAMES = {
    "preprocessor": "module",
    "guidance_strength": "guidance_end",
    "hint": "",  # ours
    "union_type": "type",
}


def control_entries(request: Request) -> Mapping[str, str]:
    """An entry for each ControlNet of a request, then IP-Adapter: `ControlNet 0` and so on."""
    units = [_unit(request, i, one) for i, one in enumerate(request.controls)]
    units += map(_ip_adapter_unit, request.ip_adapters)
    return {f"ControlNet {i}": unit for i, unit in enumerate(units)}


def _ip_adapter_unit(use: IPAdapterUse) -> str:
    """An IP-Adapter as a unit, whose module is the image encoder."""
    model, encoder = use.model, use.encoder.name if use.encoder else ""
    settings = {
        "Module": f"ip-adapter_clip_{'g' if _CLIP_G.search(encoder) else 'h'}",
        "Model": f"{model.name} [{model.hash[:8]}]" if model.hash else model.name,
        "Weight": f"{use.weight:g}",
        "Guidance Start": f"{use.interval.low:g}",
        "Guidance End": f"{use.interval.high:g}",
        "Hint": " ".join(image.hash[:12] for image in use.images),
    }
    return ", ".join(f"{key}: {value}" for key, value in settings.items() if value)


def _unit(request: Request, number: int, control: Control) -> str:
    """A unit's settings; the model with its hash as A1111 shows it."""
    model = control.model
    mode, resize = request.control_mode or ControlMode.BALANCED, request.resize or Resize.CROP
    how = request.preprocess_of(number) or Preprocess(Preprocessor.NONE)
    settings = {
        "Module": how.name.label,
        "Model": f"{model.name} [{model.hash[:8]}]" if model.hash else model.name,
        "Weight": f"{control.weight:g}",
        "Resize Mode": resize.label,
        **_thresholds(how),
        "Guidance Start": f"{control.interval.low:g}",
        "Guidance End": f"{control.interval.high:g}",
        "Control Mode": mode.label,
        "Union Type": control.type,
        "Hint": control.image.hash[:12],
    }
    return ", ".join(f"{key}: {value}" for key, value in settings.items() if value)


def _thresholds(how: Preprocess) -> dict[str, str]:
    """The numbers of a module that A1111 has them of."""
    numbers = how.numbers if how.name in SLIDERS else ()
    return {name: f"{value:g}" for name, value in zip(THRESHOLDS, numbers, strict=False)}


def control_fields(entries: Mapping[str, str], notes: list[str]) -> dict[str, object]:
    """The fields that a text's units give; their pictures have no names in it."""
    units: dict[str, dict[str, object]] = {}
    for key, value in entries.items():
        if match := KEY.fullmatch(key):
            unit = units.setdefault(match[1] or "0", {})
            pairs = {match[2]: value} if match[2] else dict(_PAIR.findall(value))
            for name, text in pairs.items():
                unit |= _setting(re.sub("[ /]", "_", name.lower()), text)
    return unit_fields(units.values(), notes)


def _setting(name: str, text: str) -> dict[str, object]:
    """A setting by its name in the API; those of early versions that held two or three, split."""
    numbers = [float(one) for one in _NUMBERS.findall(text)]
    if name == "starting_ending" and len(numbers) == 2:
        return {"guidance_start": numbers[0], "guidance_end": numbers[1]}
    if name == "preprocessor_params":
        return dict(zip(("threshold_a", "threshold_b"), numbers[1:], strict=False))
    is_number = len(numbers) == 1 and _NUMBERS.fullmatch(text)
    return {NAMES.get(name, name): numbers[0] if is_number else text}
