"""Which networks are made quick to draw with on a CPU, and how far: as far as memory allows.

What decides is a picture's own size and steps and what memory was free when the model drew its
first, so that a picture has the same bits whatever is drawn before it or with it.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from txt2img.models.optimize import cpu
from txt2img.models.optimize.cpu import Plan
from txt2img.request import Request
from txt2img.system import resources
from txt2img.system.device.device import has_bf16
from txt2img.system.text import format_size
from txt2img.weights.model import Model

PART = 0.5  # of the free memory, for weights laid out for speed
NETWORK = 0.75  # of that part; the rest is for the decoder
LARGE = 32  # pixels of a map's side; the filters of those above take little
SLOWER = "Little memory is free: {what} is computed by a slower way that takes {more} less"


def prepare_unet(model: Model, request: Request, latent: tuple[int, int, int]) -> None:
    """Make the network quick for a filled request's steps, on latents of this shape."""
    looks = (request.steps or 1) * (request.sampler.evaluations if request.sampler else 1)
    _prepare(model, "unet", model.network, latent[1:], looks)


def prepare_vae(model: Model, x: Tensor) -> None:
    """Make the decoder quick for latents (B, C, h, w)."""
    factor = model.vae.config.factor
    size = factor * x.shape[-2], factor * x.shape[-1]
    _prepare(model, "vae", model.vae, size, 1)


def _prepare(
    model: Model, name: str, network: nn.Module, size: tuple[int, int], looks: int
) -> None:
    memory, first = model.memory, next(network.parameters())
    slow = first.dtype == torch.bfloat16 and not has_bf16(first.device)
    if memory.low_memory or slow or first.device.type != "cpu":
        return cpu.restore(network)
    if memory.cpu_budget is None:
        resources.trim_heap()  # what a model before this one left
        memory.cpu_budget = int(PART * resources.available())
    spare = memory.cpu_budget * (NETWORK if name == "unet" else 1 - NETWORK)
    best = Plan(looks)
    needs = {p: cpu.need(network, *size, p) for p in (best, *cheaper_plans(best))}
    plan = next((p for p, bytes_ in needs.items() if bytes_ <= spare), None)
    if plan is best:
        resources.keep_heap()
    else:
        less = needs[best] - (0 if plan is None else needs[plan])
        memory.warn(SLOWER.format(what=f"the {name}", more=format_size(less)))
    cpu.prepare(network, plan)


def cheaper_plans(best: Plan) -> tuple[Plan, ...]:
    """Plans for when memory is short for the best, in turn: none of them packs small filters."""
    return replace(best, pack=False), replace(best, smallest=LARGE, pack=False)
