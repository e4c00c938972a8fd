"""Files of ControlNets, without torch: found by name or hash."""

import glob
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

from txt2img.errors import ModelNotFound
from txt2img.request import Request
from txt2img.request.adapters import FileRef
from txt2img.request.control import bare_name
from txt2img.request.ip_adapter import OPTION as IP_ADAPTER
from txt2img.request.ip_adapter import IPAdapterRef
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.request.resolve import AdapterPaths, find_below
from txt2img.system.text import shown
from txt2img.weights.registry.find import find_by_hash, find_file, folders, model_name

GENERIC = "diffusion_pytorch_model"  # the file in a diffusers folder
OPTION = "--control"
ONE_PERSON = "the whole picture is taken for one person; pose:MODEL,DETECTOR finds each by a model"
Ref = TypeVar("Ref", bound=FileRef)


def find_controls(request: Request, paths: AdapterPaths) -> Request:
    """The request with its ControlNets' and IP-Adapters' files found, named as records name them.

    ModelNotFound, BadRequest.
    """
    controls = tuple(replace(x, model=find_control(x.model, paths)) for x in request.controls)
    adapters = tuple(replace(x, model=find_control(x.model, paths)) for x in request.ip_adapters)
    request = request.changed(controls=controls, ip_adapters=adapters)
    request.preprocess_of(0)  # which checks how many there are
    made = (find_annotator(one, paths) for one in request.preprocess)
    return request.changed(preprocess=tuple(made))


def find_annotator(how: Preprocess, paths: AdapterPaths) -> Preprocess:
    """A preprocessor with its models found, and named as records name them. ModelNotFound."""
    names = [_find_annotator(how.name, name, paths) for name in how.models]
    if how.name is Preprocessor.POSE and not how.detector:
        paths.images.note(ONE_PERSON)
    model, detector = (*names, "", "")[:2]
    return replace(how, model=model, detector=detector)


def _find_annotator(kind: Preprocessor, name: str, paths: AdapterPaths) -> str:
    if name in paths.annotators:
        return name
    try:
        path = Path(find_file(f"--preprocess {kind}", name))
    except ModelNotFound:
        if not (found := _folder_named(name)):
            raise
        path = found
    name = path.resolve().name
    if paths.annotators.setdefault(name, path) != path:  # another of the same name
        name = str(path)
        paths.annotators[name] = path
    return name


def _folder_named(name: str) -> Path | None:
    """A folder with a config in the folders of models, by its name alone; None for none."""
    below = (folder.rglob(f"{glob.escape(name)}/config.json") for folder in folders())
    config = next(chain.from_iterable(below), None) if "/" not in name else None
    return config and config.parent


def find_control(ref: Ref, paths: AdapterPaths) -> Ref:
    """Find a ControlNet or an IP-Adapter by name or path, else by its hash.

    `paths` has it from then on. ModelNotFound, BadRequest.
    """
    is_ip = isinstance(ref, IPAdapterRef)
    known, option = (paths.ip_adapters, IP_ADAPTER) if is_ip else (paths.controls, OPTION)
    if ref.name in known:
        return ref
    path = _find(ref, paths, option)
    name = bare_name(str(path))
    if path.is_dir() or name.startswith(GENERIC):
        name = model_name(path if path.is_dir() else path.parent)
    if known.setdefault(name, path) != path:  # another of the same name
        name = "/".join([path.resolve().parent.name, name])
    known[name] = path
    return replace(ref, name=name)


def _find(ref: FileRef, paths: AdapterPaths, option: str) -> Path:
    try:
        return Path(find_file(option, ref.name))
    except ModelNotFound as error:
        below = (find_below(folder, ref.name) for folder in paths.lora_folders)
        if path := next(filter(None, below), None) or _folder_named(ref.name):
            return path
        if match := find_by_hash(ref.hash):
            return match[1]
        if not ref.hash:
            raise
        raise ModelNotFound(
            f"no file {shown(ref.name)} of the hash {ref.hash}; give it with {option}, or its "
            "folder with --lora-dir"
        ) from error
