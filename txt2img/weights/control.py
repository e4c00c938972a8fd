"""ControlNets and T2I-Adapters in memory: loaded at their first use, kept for the next ones."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from txt2img.errors import BadRequest, MissingWeights
from txt2img.models.control_configs import T2IAdapterConfig
from txt2img.models.controlnet import ControlNet
from txt2img.models.optimize.upcast import to_float32
from txt2img.models.t2i_adapter import T2IAdapter
from txt2img.request import Request
from txt2img.request.control import Control
from txt2img.request.preprocess import Preprocess
from txt2img.system.device.device import Device
from txt2img.system.device.memory import oom_as_error
from txt2img.system.device.offload import Placement
from txt2img.weights.annotator import annotator_files
from txt2img.weights.control_file import find_controls
from txt2img.weights.formats import tensors
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts.components import Component
from txt2img.weights.layouts.control import (
    HALVES,
    ControlFile,
    check_control,
    tensors_loaded,
    type_index,
)
from txt2img.weights.load import build_network, last_used, load_component
from txt2img.weights.model import AdapterState, Model, device_of
from txt2img.weights.registry.hashes import model_hash

KEPT = 3  # ControlNets besides those of the request


def resolve_controls(model: Model, request: Request) -> Request:
    """The request with its ControlNets found, hashed and checked against the model, by headers.

    ModelNotFound, BadRequest, UnknownLayout, BadFile.
    """
    state = model.adapters
    found = find_controls(request, state.paths)
    if not (found.controls or model.family.follows_picture):
        raise BadRequest("--preprocess makes maps of the pictures of --control, which is missing")
    for control in found.controls:
        name = control.model.name
        if name not in state.control_files:
            path, family = state.paths.controls[name], model.family
            state.control_files[name] = check_control(path, family, model.name)
            state.hashes["ControlNet", name] = model_hash([state.control_files[name].path])
        type_index(state.control_files[name].config, control.type, name)
    return found.changed(
        controls=tuple(_hashed(state, one) for one in found.controls),
        preprocess=tuple(_with_hash(state, how) for how in found.preprocess),
    )


def _with_hash(state: AdapterState, how: Preprocess) -> Preprocess:
    """A preprocessor with the hash of its models, if it has any."""
    if not how.model:
        return how
    kind, name = "preprocessor", ",".join(how.models)
    if (kind, name) not in state.hashes:
        files = annotator_files(state.paths.annotators[one] for one in how.models)
        state.hashes[kind, name] = model_hash(files) if files else ""
    return replace(how, hash=state.check_hash(kind, name, how.hash))


def _hashed(state: AdapterState, control: Control) -> Control:
    """A ControlNet with its file's hash."""
    digits = state.check_hash("ControlNet", control.model.name, control.model.hash)
    return replace(control, model=replace(control.model, hash=digits))


def control_networks(model: Model, controls: Iterable[Control]) -> list[ControlNet | T2IAdapter]:
    """The networks of a resolved request's ControlNets, each once, in their order.

    Those not in memory are loaded; of those that are, some of the last used stay. BadFile,
    MissingWeights, OutOfMemory.
    """
    dtype = next(model.network.parameters()).dtype
    wanted: dict[Hashable, Callable[[], ControlNet | T2IAdapter]] = {}
    for name in dict.fromkeys(one.model.name for one in controls if one.weight):
        file = model.adapters.control_files[name]
        wanted[file.path, tensors.file_key(file.path), dtype] = partial(_load, model, file)
    return last_used(model.controls, wanted, KEPT, model.memory.placement)


def _load(model: Model, file: ControlFile) -> ControlNet | T2IAdapter:
    """Load a network where the model's own network is, in its dtype."""
    with oom_as_error(f"the ControlNet {file.path.name}"):
        return _loaded(model, file)


def _loaded(model: Model, file: ControlFile) -> ControlNet | T2IAdapter:
    memory, dtype = model.memory, next(model.network.parameters()).dtype
    device = Device(device_of(model), dtype, low=memory.low_memory, optimize=memory.optimize)
    placement = memory.placement
    part = file.component
    if file.is_lora:
        placement, part = Placement(None, placement.mode), _without_halves(file, model)
    name, config = f"ControlNet {file.path.name}", file.config

    def build() -> ControlNet | T2IAdapter:
        return T2IAdapter(config) if isinstance(config, T2IAdapterConfig) else ControlNet(config)

    network = build_network(build, name, part, device)
    load_component(network, name, part, device, placement)
    if isinstance(network, ControlNet) and file.is_lora:
        _add_changes(network, file, device)
    if device.torch_device.type == "cuda" and device.optimize:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _without_halves(file: ControlFile, model: Model) -> Component:
    """A Control-LoRA's whole tensors, and the base model's in place of those that it changes."""
    assert model.checkpoint is not None
    base = model.checkpoint.components[model.family.network.component]
    return Component(tensors_loaded(file, base.tensors), file.component.file_name)


def _add_changes(network: ControlNet, file: ControlFile, device: Device) -> None:
    """Add a Control-LoRA's changes, up · down, to the base model's weights. MissingWeights."""
    changes = file.component.tensors
    for name in (name.removesuffix(".up") for name in changes if name.endswith(".up")):
        halves = {half: changes.get(f"{name}{half}") for half in HALVES}
        up, down = (_matrix(f"{name}{half}", ref, device) for half, ref in halves.items())
        try:
            layer = network.get_submodule(name)
            change = (up @ down).reshape(layer.get_parameter("weight").shape)
        except (AttributeError, RuntimeError) as error:
            raise MissingWeights(f"{file.path.name}: {name}.up and .down fit no layer") from error
        if not device.low:
            to_float32(layer)  # or the changed filter would be rounded
        weight = layer.get_parameter("weight")
        with torch.inference_mode(False), torch.no_grad():
            weight.add_(change.to(weight))


def _matrix(name: str, ref: TensorRef | None, device: Device) -> Tensor:
    if ref is None:
        raise MissingWeights(f"{name} is missing; download the file again")
    value = tensors.read({name: ref}, device.torch_device, torch.float32)[name]
    return value.flatten(1)
