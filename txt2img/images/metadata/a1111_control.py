"""ControlNets in A1111's text, as sd-webui-controlnet's infotext writes its units."""

from collections.abc import Mapping

from txt2img.request import Request
from txt2img.request.control import Control, ControlMode
from txt2img.request.input_image import Resize


def control_entries(request: Request) -> Mapping[str, str]:
    """An entry for each ControlNet of a request: `ControlNet 0` and so on."""
    return {f"ControlNet {i}": _unit(request, one) for i, one in enumerate(request.controls)}


def _unit(request: Request, control: Control) -> str:
    """A unit's settings; the model with its hash as A1111 shows it."""
    model = control.model
    mode, resize = request.control_mode or ControlMode.BALANCED, request.resize or Resize.CROP
    settings = {
        "Module": "none",
        "Model": f"{model.name} [{model.hash[:8]}]" if model.hash else model.name,
        "Weight": f"{control.weight:g}",
        "Resize Mode": resize.label,
        "Guidance Start": f"{control.interval.low:g}",
        "Guidance End": f"{control.interval.high:g}",
        "Control Mode": mode.label,
        "Union Type": control.type,
        "Hint": control.image.hash[:12],
    }
    return ", ".join(f"{key}: {value}" for key, value in settings.items() if value)
