"""IP-Adapters of a request: checked against the model, hashed, loaded when they are first used."""

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast

import torch
from torch import nn

from txt2img.errors import BadRequest
from txt2img.models.clip_vision import CLIPVision
from txt2img.models.ip_adapter import IPAdapter
from txt2img.request import Request
from txt2img.request.ip_adapter import ImageEncoderRef, IPAdapterUse
from txt2img.system.device.device import Device
from txt2img.system.device.memory import oom_as_error
from txt2img.weights.control_file import find_control, find_encoder
from txt2img.weights.formats.tensors import file_key
from txt2img.weights.layouts import ip_adapter
from txt2img.weights.layouts.clip_vision import EncoderFile
from txt2img.weights.layouts.ip_adapter import IPAdapterFile
from txt2img.weights.load import build_network, last_used, load_component
from txt2img.weights.model import Model, device_of
from txt2img.weights.registry.hashes import model_hash

Network = TypeVar("Network", bound=nn.Module)

KEPT = 2  # networks besides those of the request


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

    ModelNotFound, UnknownLayout; BadFile, MissingWeights for one that is given.
    """
    state = model.adapters
    return find_encoder(adapter, state.paths, model.checkpoint, state.image_encoders)


def load_networks(
    model: Model, adapter: IPAdapterFile, at: Device | None = None
) -> tuple[IPAdapter, CLIPVision]:
    """An IP-Adapter's network and its encoder's, those last used from memory.

    The encoder is on another device if that is named. BadFile, MissingWeights, OutOfMemory.

    They are outside the adapters' state, so that a worker has them for the next command.
    """
    encoder, memory = encoder_for(model, adapter), model.memory
    dtype = next(model.network.parameters()).dtype
    text = next(model.text.encoders[0].parameters()).dtype
    here = Device(device_of(model), dtype)
    device = at or Device(device_of(model), text, low=memory.low_memory)
    build_adapter, vision = partial(IPAdapter, adapter.config), partial(CLIPVision, encoder.config)
    wanted: dict[Hashable, Callable[[], nn.Module]] = {
        _key(adapter, here): partial(_load, model, adapter, "unet", here, build_adapter),
        _key(encoder, device): partial(_load, model, encoder, "text_encoder", device, vision),
    }
    networks = last_used(model.image_networks, wanted, KEPT, memory.placement)
    return cast(tuple[IPAdapter, CLIPVision], tuple(networks))


def _key(file: IPAdapterFile | EncoderFile, device: Device) -> Hashable:
    paths = sorted({ref.path for ref in file.component.tensors.values()})
    return device, *((path, file_key(path)) for path in paths)


@torch.inference_mode(False)
def _load(
    model: Model,
    file: IPAdapterFile | EncoderFile,
    part: str,
    device: Device,
    build: Callable[[], Network],
) -> Network:
    """Load the network of a file as part of a model."""
    with oom_as_error(file.path.name):
        network = build_network(build, file.path.name, file.component, device)
        load_component(network, part, file.component, device, model.memory.placement)
    return network
