"""A name or a path → a Model: planned from headers, then read strictly, onto the device."""

from collections.abc import Callable, Collection, Set
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from txt2img.errors import BadFile
from txt2img.models.optimize.cuda_graph import Graphed, recorded_on_card
from txt2img.models.optimize.quantize import quantize
from txt2img.models.optimize.upcast import lean_weights, slim
from txt2img.models.taesd import AnyVAE, vae_of
from txt2img.models.text_encoder import TextEncoder, TextEncoders
from txt2img.models.unet import UNet
from txt2img.request.resolve import NO_OVERRIDES, ComponentOverrides
from txt2img.system.device import offload
from txt2img.system.device.device import Device
from txt2img.system.device.memory import CPU, MemoryState
from txt2img.system.device.offload import Placement, Read
from txt2img.system.text import shown
from txt2img.weights import tokenizer_files
from txt2img.weights.adapters.state import AdapterState
from txt2img.weights.checkpoint import Checkpoint, check_vae, open_checkpoint
from txt2img.weights.formats import tensors
from txt2img.weights.layouts.components import Part, bare, check, check_size
from txt2img.weights.layouts.taesd import doubts
from txt2img.weights.layouts.vae import open_vae
from txt2img.weights.model import Model, device_of
from txt2img.weights.registry.hashes import hash_in_background, set_compiler_cache

Network = TypeVar("Network", bound=nn.Module)

NOT_COMPILED = (
    "--compile is for models that lie on a CUDA card as a whole: this one is not compiled"
)


def load(
    name_or_path: str,
    device: Device,
    prediction: str | None = None,
    vae_path: str | None = None,
    others: ComponentOverrides = NO_OVERRIDES,
) -> Model:
    """The model, its weights checked and on the device, with the VAE at `vae_path` if given.

    `others` in place of its own networks make another model of it, with a hash of all files.
    `prediction`, "eps" or "v", overrules what the files say. Raises ModelNotFound, UnknownLayout,
    MissingWeights, BadFile, each naming what is wrong.
    """
    plan = open_checkpoint(name_or_path, prediction, others)
    check_vae(plan, vae_path)
    other = None if vae_path is None else open_vae(vae_path, plan.family.vae)
    if other is not None:
        parts = plan.parts | {"vae": Part(other.tensors, other.theirs)}
        plan = replace(plan, parts=parts)
    shape = plan.family.vae if other is None else other.config
    placement = choose_placement(plan, device)
    with hash_in_background(plan.weights) as digest:
        vae = _made(lambda: vae_of(shape), "vae", plan, device)
        _fill(vae, "vae", plan, device, placement)
        model = build_empty(plan, device, vae)
        model.memory = MemoryState(
            low_memory=device.low, quantized=device.quantize, placement=placement
        )
        if other is not None:
            model.adapters.vae = other.record
            model.adapters.warnings += doubts(other.record.name, plan.family.vae)
        load_weights(model, device)
        model.hash = digest()
    return model


def build_empty(plan: Checkpoint, device: Device, vae: AnyVAE) -> Model:
    """A model whose networks, but for the VAE, take no memory yet, and which has no hash.

    Raises as `load` does.
    """
    family = plan.family
    check_size(family.network, plan.parts["unet"])
    network = _made(lambda: UNet(family.network), "unet", plan, device)
    encoders = [
        _made(partial(TextEncoder, config, plan.tokenizers[component]), component, plan, device)
        for config, component in zip(family.texts, plan.tokenizers, strict=True)
    ]
    for (component, tokenizer), config in zip(plan.tokenizers.items(), family.texts, strict=True):
        tokenizer_files.check_rows(component, tokenizer, config.vocab)
    text = TextEncoders(encoders) if encoders[1:] else encoders[0]
    memory = MemoryState(low_memory=device.low)
    return Model(plan.name, "", family, network, vae, text, AdapterState(), memory, checkpoint=plan)


def load_weights(model: Model, device: Device) -> None:
    """Read a model's weights by its plan, but for the VAE's. Raises MissingWeights, BadFile.

    On a card they are laid out, and the U-Net recorded or compiled, as that draws soonest.
    """
    plan, placement = model.checkpoint, model.memory.placement
    assert plan is not None
    _fill(model.network, "unet", plan, device, placement)
    for component, encoder in zip(plan.tokenizers, model.text.encoders, strict=True):
        _fill(encoder, component, plan, device, placement)
    if device.quantize:
        quantize(model.network, device.quantize)
    if device.torch_device.type != "cuda":
        return
    for network in (model.network, model.vae):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if placement.mode == "none":
        cache = set_compiler_cache() if device.compile else ""
        model.graphed = Graphed(
            model.network, lambda line: model.memory.warn(line), recorded_on_card, cache
        )


def choose_placement(plan: Checkpoint, device: Device) -> Placement:
    """How a model's parts get to the device, with lines that say so. BadRequest."""
    sizes = {
        component: device.dtype_of(component).itemsize
        * sum(torch.Size(stored.shape).numel() for stored in part.tensors.values())
        for component, part in plan.parts.items()
    }
    where = device.torch_device
    free = offload.free_memory(where) if device.offload == "auto" else None
    mode, line = offload.choose_mode(device.offload, where, sizes, free)
    notes = [line] if line else []
    if device.compile and (where.type != "cuda" or mode != "none"):
        notes.append(NOT_COMPILED)
    return Placement(where, mode, tuple(notes))


def load_vae(name: str, model: Model) -> AnyVAE:
    """Another VAE beside a model's own, where that computes and as precise; doubts are noted.

    Raises as `open_vae` and `load` do.
    """
    device = Device(device_of(model), next(model.vae.parameters()).dtype)
    other = open_vae(name, model.family.vae)
    model.adapters.warnings += doubts(other.record.name, model.family.vae)
    parts = {"vae": Part(other.tensors, other.theirs)}
    plan = Checkpoint(other.record.name, "", model.family, parts, {}, ())
    vae = _made(lambda: vae_of(other.config), "vae", plan, device)
    _fill(vae, "vae", plan, device, Placement())
    return vae


def _made(
    build: Callable[[], Network], component: str, plan: Checkpoint, device: Device
) -> Network:
    """A network that takes no memory yet, compared with the headers."""
    with torch.device("meta"):
        network = build()
    shapes = {bare(name): tuple(value.shape) for name, value in network.state_dict().items()}
    check(component, plan.parts[component], shapes)
    if device.low or keeps_filters_narrow(component, device):
        slim(network, filters_only=not device.low)
    return network.eval().requires_grad_(False)


def keeps_filters_narrow(component: str, device: Device) -> bool:
    """Whether a part's larger filters stay as they are stored: where they are laid out anew for
    speed, in float32, they would be in memory twice.
    """
    return device.torch_device.type == "cpu" and device.dtype_of(component) == torch.float32


@torch.inference_mode(False)
def _fill(
    network: nn.Module, component: str, plan: Checkpoint, device: Device, placement: Placement
) -> None:
    """Read a network's weights; where main memory is short and computes, for each use only."""
    dtype = device.dtype_of(component)
    home = device.torch_device if placement.mode == "none" else CPU
    read = _reader(plan.parts[component], home, dtype, lean_weights(network))
    if device.low and device.torch_device.type == "cpu" and placement.device is not None:
        network.to(dtype)
        placement.lazy_readers[network] = read
    else:
        network.load_state_dict(read(network.state_dict()), strict=True, assign=True)
    network.requires_grad_(False)


def _reader(part: Part, home: torch.device, dtype: torch.dtype, slimmed: Set[str]) -> Read:
    """What reads a network's weights by their names; those `slimmed` stay as they are stored.

    It raises as reading.read does, and BadFile if a file is no longer the one that was checked.
    """
    kept = {part.theirs(bare(name)) for name in slimmed}
    were = {
        path: tensors.file_key(path) for path in {stored.path for stored in part.tensors.values()}
    }

    def read(names: Collection[str]) -> dict[str, Tensor]:
        for path, was in were.items():
            if tensors.file_key(path) != was:
                raise BadFile(f"{shown(path.name)} was changed while it was in use; start again")
        theirs = {name: part.theirs(bare(name)) for name in names}
        stored = {theirs[name]: part.tensors[bare(name)] for name in names}
        found = tensors.read(stored, home, dtype, kept)
        return {name: found[theirs[name]] for name in names}

    return read
