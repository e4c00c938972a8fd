"""A loaded model: its family, networks, adapters and refiner."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from txt2img.diffusion.conditioning import ScheduledCond
from txt2img.models.optimize.cuda_graph import Graphed
from txt2img.models.taesd import AnyVAE
from txt2img.models.text_encoder import TextEncoder, TextEncoders
from txt2img.models.unet import UNet
from txt2img.request.adapters import Refiner
from txt2img.system.device.memory import MemoryState
from txt2img.weights.adapters.state import AdapterState
from txt2img.weights.checkpoint import Checkpoint
from txt2img.weights.families import Family


@dataclass
class Model:
    """A family with its weights: all that turns a request into pictures."""

    name: str  # for users; never a path
    hash: str  # ten hex digits of its weights
    family: Family
    network: UNet
    vae: AnyVAE
    text: TextEncoder | TextEncoders
    adapters: AdapterState = field(default_factory=AdapterState)
    memory: MemoryState = field(default_factory=MemoryState)
    graphed: Graphed | None = None  # the network recorded as CUDA graphs, or compiled
    refiner: "SecondStage | None" = None
    checkpoint: Checkpoint | None = None  # the files that its weights come from
    prompt_cache: dict[Hashable, tuple[ScheduledCond, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class SecondStage:
    """A refiner, and what a picture's record says of it."""

    record: Refiner
    model: Model


def device_of(model: Model) -> torch.device:
    """The device that computes; with offloading the weights may wait elsewhere."""
    return model.memory.placement.device or next(model.network.parameters()).device
