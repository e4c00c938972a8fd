"""Files of ControlNets, without torch: found by name or hash."""

from dataclasses import replace
from pathlib import Path

from txt2img.errors import ModelNotFound
from txt2img.request import Request
from txt2img.request.control import Control, ControlRef, bare_name
from txt2img.request.resolve import AdapterPaths, find_below
from txt2img.weights.registry.find import find_by_hash, find_file, model_name

GENERIC = "diffusion_pytorch_model"  # the file in a diffusers folder
OPTION = "--control"


def find_controls(request: Request, paths: AdapterPaths) -> Request:
    """The request with its ControlNets' files found, and named as records name them.

    ModelNotFound, BadRequest.
    """

    def found(control: Control) -> Control:
        return replace(control, model=find_control(control.model, paths))

    return request.changed(controls=tuple(map(found, request.controls)))


def find_control(ref: ControlRef, paths: AdapterPaths) -> ControlRef:
    """Find a ControlNet by name or path, else by its hash; `paths.controls` has it from then on.

    ModelNotFound, BadRequest.
    """
    if ref.name in paths.controls:
        return ref
    path = _find(ref, paths)
    name = bare_name(str(path))
    if path.is_dir() or name.startswith(GENERIC):
        name = model_name(path if path.is_dir() else path.parent)
    known = paths.controls.setdefault(name, path)
    name = name if known == path else str(path)[-255:]  # another of the same name
    paths.controls[name] = path
    return ControlRef(name, ref.hash)


def _find(ref: ControlRef, paths: AdapterPaths) -> Path:
    try:
        return Path(find_file(OPTION, ref.name))
    except ModelNotFound:
        below = (find_below(folder, ref.name) for folder in paths.lora_folders)
        if path := next(filter(None, below), None):
            return path
        if match := find_by_hash(ref.hash):
            return match[1]
        raise
