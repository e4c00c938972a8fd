"""A name or a path → a Model: planned from headers, then read strictly, onto the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from txt2img.device import Device
from txt2img.errors import MissingWeights
from txt2img.escape import shown
from txt2img.library import OWN_PARTS, OtherParts
from txt2img.memory import Memory
from txt2img.models.lean import lean_weights, slim
from txt2img.models.taesd import AnyVAE, vae_of
from txt2img.models.text import TextEncoder, TextEncoders
from txt2img.models.unet import UNet
from txt2img.weights import files
from txt2img.weights.families import Family
from txt2img.weights.hashes import model_hash
from txt2img.weights.other_vae import open_vae
from txt2img.weights.parts import Part, bare, listed
from txt2img.weights.plan import Plan, planned
from txt2img.weights.tiny_vae import doubts
from txt2img.weights.wear import Wardrobe

if TYPE_CHECKING:
    from txt2img.weights.refiner import SecondStage

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Model:
    """A family with its weights: all that turns a request into pictures."""

    name: str  # what users see; never a path
    hash: str  # ten hex digits that tell its weights from others'
    family: Family
    network: UNet
    vae: AnyVAE
    text: TextEncoder | TextEncoders
    wardrobe: Wardrobe = field(default_factory=Wardrobe)
    memory: Memory = field(default_factory=Memory)
    second: "SecondStage | None" = None  # a refiner, for the last steps
    plan: Plan | None = None  # where its weights come from


def load(
    name_or_path: str,
    device: Device,
    prediction: str | None = None,
    vae_path: str | None = None,
    others: OtherParts = OWN_PARTS,
) -> Model:
    """The model, its weights checked and on the device, with the VAE at `vae_path` if given.

    `others` in place of its own networks make another model of it, with a hash of all files.
    `prediction`, "eps" or "v", overrules what the files say. Raises ModelNotFound, UnknownLayout,
    MissingWeights, BadFile, each naming what is wrong.
    """
    plan = planned(name_or_path, prediction, others)
    other = None if vae_path is None else open_vae(vae_path, plan.family.vae)
    if other is not None:
        parts = plan.parts | {"vae": Part(other.tensors, other.theirs)}
        plan = replace(plan, parts=parts)
    shape = plan.family.vae if other is None else other.config
    vae = _made(lambda: vae_of(shape), "vae", plan, device)
    _fill(vae, "vae", plan, device)
    model = without_weights(plan, device, vae)
    if other is not None:
        model.wardrobe.vae = other.record
        model.wardrobe.notes += doubts(other.record.name, plan.family.vae)
    fill(model, device)
    return model


def without_weights(plan: Plan, device: Device, vae: AnyVAE) -> Model:
    """A model whose networks, but for the VAE, take no memory yet. Raises as `load` does."""
    family = plan.family
    network = _made(lambda: UNet(family.network), "unet", plan, device)
    encoders = [
        _made(partial(TextEncoder, config, plan.tokenizers[component]), component, plan, device)
        for config, component in zip(family.texts, plan.tokenizers, strict=True)
    ]
    text = TextEncoders(encoders) if encoders[1:] else encoders[0]
    memory = Memory(low=device.low)
    hashed = model_hash(plan.weights)
    return Model(plan.name, hashed, family, network, vae, text, Wardrobe(), memory, plan=plan)


def fill(model: Model, device: Device) -> None:
    """Read a model's weights by its plan, but for the VAE's. Raises MissingWeights, BadFile."""
    plan = model.plan
    assert plan is not None
    _fill(model.network, "unet", plan, device)
    for component, encoder in zip(plan.tokenizers, model.text.encoders, strict=True):
        _fill(encoder, component, plan, device)


def load_vae(name: str, model: Model) -> AnyVAE:
    """Another VAE beside a model's own, where that is and as precise; doubts go to the notes.

    Raises as `open_vae` and `load` do.
    """
    weight = next(model.vae.parameters())
    device = Device(weight.device, weight.dtype)
    other = open_vae(name, model.family.vae)
    model.wardrobe.notes += doubts(other.record.name, model.family.vae)
    parts = {"vae": Part(other.tensors, other.theirs)}
    plan = Plan(other.record.name, "", model.family, parts, {}, ())
    vae = _made(lambda: vae_of(other.config), "vae", plan, device)
    _fill(vae, "vae", plan, device)
    return vae


def _made(build: Callable[[], Network], component: str, plan: Plan, device: Device) -> Network:
    """A network that takes no memory yet, compared with the headers."""
    with torch.device("meta"):
        network = build()
    shapes = {bare(name): tuple(value.shape) for name, value in network.state_dict().items()}
    _check(component, plan.parts[component], shapes)
    if device.low:
        slim(network)
    return network.eval().requires_grad_(False)


@torch.inference_mode(False)
def _fill(network: nn.Module, component: str, plan: Plan, device: Device) -> None:
    """Read a network's weights."""
    part = plan.parts[component]
    theirs = {part.theirs(name): stored for name, stored in part.tensors.items()}
    kept = {part.theirs(bare(name)) for name in lean_weights(network)}
    read = files.read(theirs, device.torch_device, device.dtype_of(component), kept)
    state = {name: read[part.theirs(bare(name))] for name in network.state_dict()}
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False)


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
