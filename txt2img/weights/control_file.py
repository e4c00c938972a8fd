"""Files of ControlNets, without torch: found by name or hash."""

import glob
from dataclasses import replace
from itertools import chain
from pathlib import Path

from txt2img.errors import ModelNotFound
from txt2img.request import Request
from txt2img.request.control import Control, ControlRef, bare_name
from txt2img.request.preprocess import Preprocess
from txt2img.request.resolve import AdapterPaths, find_below
from txt2img.weights.registry.find import find_by_hash, find_file, folders, model_name

GENERIC = "diffusion_pytorch_model"  # the file in a diffusers folder
OPTION = "--control"


def find_controls(request: Request, paths: AdapterPaths) -> Request:
    """The request with its ControlNets' files found, and named as records name them.

    ModelNotFound, BadRequest.
    """

    def found(control: Control) -> Control:
        return replace(control, model=find_control(control.model, paths))

    request = request.changed(controls=tuple(map(found, request.controls)))
    for number in range(len(request.controls)):
        request.preprocess_of(number)  # which checks how many there are
    made = (find_annotator(one, paths) for one in request.preprocess)
    return request.changed(preprocess=tuple(made))


def find_annotator(how: Preprocess, paths: AdapterPaths) -> Preprocess:
    """A preprocessor with its model found, and named as records name it. ModelNotFound."""
    if not how.model or how.model in paths.annotators:
        return how
    path = _annotator_folder(how)
    paths.annotators[name := path.resolve().name] = path
    return replace(how, model=name)


def _annotator_folder(how: Preprocess) -> Path:
    try:
        return find_file(f"--preprocess {how.name}", how.model)
    except ModelNotFound:
        below = (folder.rglob(f"{glob.escape(how.model)}/config.json") for folder in folders())
        config = next(chain.from_iterable(below), None) if "/" not in how.model else None
        if config is None:
            raise
        return config.parent


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
