"""Files of ControlNets and IP-Adapters, without torch: found by name or hash."""

import glob
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

from txt2img.errors import ModelNotFound, Txt2imgError, UnknownLayout
from txt2img.request import Request
from txt2img.request.adapters import FileRef
from txt2img.request.control import bare_name
from txt2img.request.ip_adapter import OPTION as IP_ADAPTER
from txt2img.request.ip_adapter import IPAdapterRef
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.request.resolve import AdapterPaths, find_below
from txt2img.system import user_config
from txt2img.system.text import shown
from txt2img.weights.checkpoint import Checkpoint
from txt2img.weights.layouts import clip_vision
from txt2img.weights.layouts.clip_vision import SUFFIX, EncoderFile
from txt2img.weights.layouts.ip_adapter import IPAdapterFile
from txt2img.weights.registry.find import (
    find_by_hash,
    find_file,
    folders,
    list_models,
    model_name,
)

GENERIC = "diffusion_pytorch_model"  # the file in a diffusers folder
OPTION = "--control"
ONE_PERSON = "the whole picture is taken for one person; pose:MODEL,DETECTOR finds each by a model"
# Names of image encoders in folders of models, as h94, ComfyUI and A1111 call them.
ENCODERS = re.compile(r"image.?encoder|clip.?vi[st]|clip_[hg]\b", re.IGNORECASE)
BESIDE = ("image_encoder", "../image_encoder", "../models/image_encoder", "../clip_vision")
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


def find_encoder(
    adapter: IPAdapterFile,
    paths: AdapterPaths,
    checkpoint: Checkpoint | None,
    known: dict[Path, EncoderFile],
) -> EncoderFile:
    """The image encoder that an IP-Adapter reads pictures by: given, beside it, or known.

    Those opened are kept by their own paths and by the adapters'. ModelNotFound, UnknownLayout;
    BadFile, MissingWeights for one that is given.
    """
    if adapter.path not in known:
        known[adapter.path] = _find_encoder(adapter, paths, checkpoint, known)
    return known[adapter.path]


def _find_encoder(
    adapter: IPAdapterFile,
    paths: AdapterPaths,
    checkpoint: Checkpoint | None,
    known: dict[Path, EncoderFile],
) -> EncoderFile:
    def opened(path: Path) -> EncoderFile:
        if path not in known:
            known[path] = clip_vision.open_clip_vision(path)
        return known[path]

    given = [opened(Path(path)) for path in paths.ip_encoders]
    for encoder in given:
        if encoder.fits(adapter.config):
            return encoder
    needed = clip_vision.needed(adapter.config)
    if given:
        names = ", ".join(shown(encoder.path.name) for encoder in given)
        raise UnknownLayout(
            f"--ip-encoder: {shown(adapter.path.name)} reads {needed}, which {names} does not give"
        )
    for path in _encoder_places(adapter.path, checkpoint):
        try:
            encoder = opened(path)
        except Txt2imgError:  # no image encoder, despite its name
            continue
        if encoder.fits(adapter.config):
            return encoder
    raise ModelNotFound(
        f"{shown(adapter.path.name)} reads {needed}, and no such image encoder is beside it or in "
        "the folders of models; give its file with --ip-encoder"
    )


def _encoder_places(adapter: Path, checkpoint: Checkpoint | None) -> Iterator[Path]:
    """Where an image encoder may be, without one that is given."""
    for name in BESIDE:
        if (folder := adapter.parent / name).is_dir():
            yield from ([folder] if (folder / "config.json").is_file() else _files(folder))
    yield from (path for path in _files(adapter.parent) if ENCODERS.search(path.name))
    if checkpoint is not None and checkpoint.layout == "diffusers":
        inner = checkpoint.weights[0].parent.parent / "image_encoder"
        yield from [inner] if inner.is_dir() else []
    for name, source in user_config.read_config().models.items():
        path = Path(source.target)
        if path.exists() and (ENCODERS.search(name) or ENCODERS.search(path.name)):
            yield path
    yield from (path for name, path in list_models() if ENCODERS.search(name))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))
