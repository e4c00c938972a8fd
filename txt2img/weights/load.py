"""A name or a path → a Model: planned from headers, then read strictly, onto the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from txt2img.device import Device
from txt2img.errors import MissingWeights
from txt2img.escape import shown
from txt2img.memory import Memory
from txt2img.models.lean import slim
from txt2img.models.text import TextEncoder, TextEncoders
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.weights import files
from txt2img.weights.families import Family
from txt2img.weights.hashes import model_hash
from txt2img.weights.other_vae import open_vae
from txt2img.weights.parts import Part, bare, listed
from txt2img.weights.plan import Plan, planned
from txt2img.weights.wear import Wardrobe

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Model:
    """A family with its weights: all that turns a request into pictures."""

    name: str  # what users see; never a path
    hash: str  # ten hex digits that tell its weights from others'
    family: Family
    network: UNet
    vae: VAE
    text: TextEncoder | TextEncoders
    wardrobe: Wardrobe = field(default_factory=Wardrobe)
    memory: Memory = field(default_factory=Memory)


def load(
    name_or_path: str, device: Device, prediction: str | None = None, vae_path: str | None = None
) -> Model:
    """The model, its weights checked and on the device, with the VAE at `vae_path` if given.

    `prediction`, "eps" or "v", overrules what the files say. Raises ModelNotFound, UnknownLayout,
    MissingWeights, BadFile, each naming what is wrong.
    """
    plan = planned(name_or_path, prediction)
    other = None if vae_path is None else open_vae(vae_path, plan.family.vae)
    if other is not None:
        parts = plan.parts | {"vae": Part(other.tensors, other.theirs)}
        plan = replace(plan, family=replace(plan.family, vae=other.config), parts=parts)
    family = plan.family
    network = _filled(lambda: UNet(family.network), "unet", plan, device)
    vae = _filled(lambda: VAE(family.vae), "vae", plan, device)
    encoders = [
        _filled(partial(TextEncoder, config, plan.tokenizers[component]), component, plan, device)
        for config, component in zip(family.texts, plan.tokenizers, strict=True)
    ]
    text = TextEncoders(encoders) if encoders[1:] else encoders[0]
    wardrobe = Wardrobe(vae=None if other is None else other.record)
    memory = Memory(low=device.low)
    hashed = model_hash(plan.weights)
    return Model(plan.name, hashed, family, network, vae, text, wardrobe, memory)


def _filled(build: Callable[[], Network], component: str, plan: Plan, device: Device) -> Network:
    """A network with its weights: built without memory, compared with the headers, then read."""
    part = plan.parts[component]
    with torch.device("meta"):
        network = build()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    _check(component, part, {bare(name): shape for name, shape in shapes.items()})
    theirs = {part.theirs(name): stored for name, stored in part.tensors.items()}
    slimmed = slim(network) if device.low else set()
    kept = {part.theirs(bare(name)) for name in slimmed}
    read = files.read(theirs, device.torch_device, device.dtype_of(component), kept)
    state = {name: read[part.theirs(bare(name))] for name in shapes}
    network.load_state_dict(state, strict=True, assign=True)
    _number_positions(network, device.torch_device)
    return network.eval().requires_grad_(False)


def _check(component: str, part: Part, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor must be there, in its shape, and no other. Raises MissingWeights."""
    missing = [part.theirs(name) for name in wanted if name not in part.tensors]
    extra = [part.theirs(name) for name in part.tensors if name not in wanted]
    if missing:
        also = f"; unknown are {listed(extra)}" if extra else ""
        raise MissingWeights(f"{component}: {listed(missing)} missing{also}; download it again")
    if extra:
        raise MissingWeights(f"{component}: {listed(extra)} unknown to this architecture")
    for name, shape in wanted.items():
        if (got := part.tensors[name].shape) != shape:
            what = shown(part.theirs(name), files.NAME_MAX)
            raise MissingWeights(f"{component}: {what} has the shape {got}; {shape} is needed")


def _number_positions(network: nn.Module, device: torch.device) -> None:
    """Give CLIP's position numbers their values: a buffer that no file holds."""
    for name, buffer in network.named_buffers():
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            numbers = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            setattr(network.get_submodule(owner), attribute, numbers)
