"""IP-Adapters of a request: checked against the model, hashed, loaded when they are first used."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from txt2img.errors import BadRequest, ModelNotFound, Txt2imgError, UnknownLayout
from txt2img.models.clip_vision import CLIPVision
from txt2img.models.ip_adapter import IPAdapter
from txt2img.request import Request
from txt2img.request.ip_adapter import ImageEncoderRef, IPAdapterUse
from txt2img.system import user_config
from txt2img.system.device.device import Device
from txt2img.system.device.memory import oom_as_error
from txt2img.system.text import shown
from txt2img.weights.control_file import find_control
from txt2img.weights.formats.tensors import file_key
from txt2img.weights.layouts import clip_vision, ip_adapter
from txt2img.weights.layouts.clip_vision import SUFFIX, EncoderFile
from txt2img.weights.layouts.ip_adapter import IPAdapterFile
from txt2img.weights.load import build_network, load_component
from txt2img.weights.model import AdapterState, Model, device_of
from txt2img.weights.registry.find import list_models
from txt2img.weights.registry.hashes import model_hash

Network = TypeVar("Network", bound=nn.Module)

# Names of image encoders in folders of models, as h94, ComfyUI and A1111 call them.
ENCODERS = re.compile(r"image.?encoder|clip.?vi[st]|clip_[hg]\b", re.IGNORECASE)
KEPT = 4  # networks
BESIDE = ("image_encoder", "../image_encoder", "../models/image_encoder", "../clip_vision")


def resolve_ip_adapters(model: Model, request: Request) -> Request:
    """The request with its IP-Adapters and their encoders found, checked and hashed.

    ModelNotFound, BadFile, UnknownLayout, MissingWeights; BadRequest for a mask too many.
    """
    masks, uses = len(request.ip_masks), len(request.ip_adapters)
    if masks > uses:
        raise BadRequest(f"{masks} of --ip-mask for {uses} of --ip-adapter; give one for each")
    return request.changed(ip_adapters=tuple(_resolve(model, x) for x in request.ip_adapters))


def _resolve(model: Model, use: IPAdapterUse) -> IPAdapterUse:
    """A use whose IP-Adapter and encoder are opened, checked and hashed."""
    state, kinds = model.adapters, ("IP-Adapter", "image encoder")
    ref = find_control(use.model, state.paths)
    if ref.name not in state.ip_adapters:
        path = state.paths.ip_adapters[ref.name]
        file = ip_adapter.open_ip_adapter(path)
        ip_adapter.check_fits(file.config, model.family.network, path.name, model.family.name)
        state.hashes[kinds[0], ref.name] = model_hash((path,))
        state.ip_adapters[ref.name] = file
    encoder = encoder_for(model, state.ip_adapters[ref.name])
    if (kinds[1], encoder.name) not in state.hashes:
        files = sorted({ref.path for ref in encoder.component.tensors.values()})
        state.hashes[kinds[1], encoder.name] = model_hash(files)
    recorded = "" if use.encoder is None else use.encoder.hash
    digits = state.check_hash(kinds[1], encoder.name, recorded)
    return replace(
        use,
        model=replace(ref, hash=state.check_hash(kinds[0], ref.name, ref.hash)),
        encoder=ImageEncoderRef(encoder.name, digits),
    )


def encoder_for(model: Model, adapter: IPAdapterFile) -> EncoderFile:
    """The image encoder that an IP-Adapter reads pictures by, looked for once.

    It is given, beside the adapter, or known. ModelNotFound, UnknownLayout; BadFile, MissingWeights
    for one that is given.
    """
    known = model.adapters.image_encoders
    if adapter.path not in known:
        known[adapter.path] = _find_encoder(model, adapter)
    return known[adapter.path]


def _find_encoder(model: Model, adapter: IPAdapterFile) -> EncoderFile:
    state = model.adapters
    given = [_opened(state, Path(path)) for path in state.paths.ip_encoders]
    for encoder in given:
        if encoder.fits(adapter.config):
            return encoder
    needed = clip_vision.needed(adapter.config)
    if given:
        names = ", ".join(shown(encoder.path.name) for encoder in given)
        raise UnknownLayout(
            f"--ip-encoder: {shown(adapter.path.name)} reads {needed}, which {names} does not give"
        )
    for path in _places(model, adapter.path):
        try:
            encoder = _opened(state, path)
        except Txt2imgError:  # no image encoder, despite its name
            continue
        if encoder.fits(adapter.config):
            return encoder
    raise ModelNotFound(
        f"{shown(adapter.path.name)} reads {needed}, and no such image encoder is beside it or in "
        "the folders of models; give its file with --ip-encoder"
    )


def _opened(state: AdapterState, path: Path) -> EncoderFile:
    """The image encoder at a path, opened once."""
    if path not in state.image_encoders:
        state.image_encoders[path] = clip_vision.open_clip_vision(path)
    return state.image_encoders[path]


def _places(model: Model, adapter: Path) -> Iterator[Path]:
    """Where an image encoder may be, without one that is given."""
    for name in BESIDE:
        if (folder := adapter.parent / name).is_dir():
            yield from ([folder] if (folder / "config.json").is_file() else _files(folder))
    yield from (path for path in _files(adapter.parent) if ENCODERS.search(path.name))
    if model.checkpoint is not None and model.checkpoint.layout == "diffusers":
        inner = model.checkpoint.weights[0].parent.parent / "image_encoder"
        yield from [inner] if inner.is_dir() else []
    for name, source in user_config.read_config().models.items():
        path = Path(source.target)
        if path.exists() and (ENCODERS.search(name) or ENCODERS.search(path.name)):
            yield path
    yield from (path for name, path in list_models() if ENCODERS.search(name))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def load_networks(model: Model, adapter: IPAdapterFile) -> tuple[IPAdapter, CLIPVision]:
    """An IP-Adapter's network and its encoder's, those last used from memory.

    BadFile, MissingWeights, OutOfMemory.
    """
    encoder = encoder_for(model, adapter)
    dtype = next(model.network.parameters()).dtype
    own = _loaded(model, adapter, "unet", dtype, lambda: IPAdapter(adapter.config))
    dtype = next(model.text.encoders[0].parameters()).dtype
    vision = _loaded(model, encoder, "text_encoder", dtype, lambda: CLIPVision(encoder.config))
    return own, vision


@torch.inference_mode(False)
def _loaded(
    model: Model,
    file: IPAdapterFile | EncoderFile,
    part: str,
    dtype: torch.dtype,
    build: Callable[[], Network],
) -> Network:
    """The network of a file as part of a model, in a dtype; some of the last used stay in memory.

    They are outside the adapters' state, so that a worker has them for the next command.
    """
    tensors, memory, kept = file.component.tensors, model.memory, model.image_networks
    paths = sorted({ref.path for ref in tensors.values()})
    key = part, dtype, *((path, file_key(path)) for path in paths)
    if (network := kept.pop(key, None)) is None:
        device = Device(device_of(model), dtype, low=memory.low_memory and part != "unet")
        with oom_as_error(file.path.name):
            network = build_network(build, file.path.name, file.component, device)
            load_component(network, part, file.component, device, memory.placement)
    kept[key] = network  # the last used come last
    for old in list(kept)[:-KEPT]:
        memory.placement.lazy_readers.pop(kept.pop(old), None)
    return cast(Network, network)
