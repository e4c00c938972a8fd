"""CPU optimisations of the networks, as far as memory allows.

They depend on an image's own size and steps and on the memory that was free when the model drew
its first, so that an image has the same bits whatever is drawn before it or with it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from txt2img.models.optimize.cpu import CpuPlan, bytes_needed, optimize
from txt2img.request import Request
from txt2img.system import resources
from txt2img.system.device.device import has_bf16
from txt2img.system.device.offload import free_for
from txt2img.system.text import format_size
from txt2img.weights.model import Model

PART = 0.5  # of the free memory, for optimised copies of weights
NETWORK = 0.75  # of that part; the rest is for the decoder
LARGE = 32  # side of a feature map; filters of larger ones take little memory
LAYOUT = "{} layout"  # in records where it is not the fastest: its sums are rounded otherwise
SLOWER = "Little memory is free: the {network} runs in a slower way that takes {size} less"


def prepare_network(
    model: Model,
    request: Request,
    latent: tuple[int, int, int],
    networks: Sequence[nn.Module] = (),
) -> None:
    """Optimise the network, or all `networks`, for a filled request's steps and latents' shape.

    A transformer stays plain: all of it is matrices, and packed copies would be a twentieth faster
    and take as much memory as it does.
    """
    if model.family.network.component == "transformer":
        return
    evaluations = (request.steps or 1) * (request.sampler.evaluations if request.sampler else 1)
    label, networks = model.family.network.label, networks or [model.network]
    plan = _choose_plan(model, label, networks, latent[1:], evaluations)
    for network in networks:
        optimize(network, plan, request.token_merging or 0.0)


def prepare_vae(model: Model, size: Sequence[int]) -> None:
    """Optimise the VAE for pictures of so many pixels, height and width."""
    height, width = size
    optimize(model.vae, _choose_plan(model, "vae", [model.vae], (height, width), 1))


def _choose_plan(
    model: Model, name: str, networks: Sequence[nn.Module], size: tuple[int, int], evaluations: int
) -> CpuPlan | None:
    """The best plan that memory allows, with a warning if not the best; None for plain torch."""
    memory, first = model.memory, next(networks[0].parameters())
    memory.used.pop(LAYOUT.format(name), None)
    slow_dtype = first.dtype == torch.bfloat16 and not has_bf16(first.device)
    if slow_dtype or first.device.type != "cpu":
        return None
    placement = memory.placement
    if not memory.optimize or memory.low_memory or placement.mode != "none":
        memory.used[LAYOUT.format(name)] = "plain"
        return None
    if memory.cpu_budget is None:
        resources.trim_heap()  # of an earlier model
        free = free_for(first.device, placement.limit) or 0
        memory.cpu_budget = max(int(PART * free), 0)
    budget = memory.cpu_budget * (1 - NETWORK if name == "vae" else NETWORK)
    best = CpuPlan(evaluations)
    cheaper = replace(best, pack=False), replace(best, winograd_side=LARGE, pack=False)
    plans = (best, *cheaper)
    needs = {p: sum(bytes_needed(one, *size, p) for one in networks) for p in plans}
    plan = next((p for p, bytes_ in needs.items() if bytes_ <= budget), None)
    if plan is best:
        resources.keep_heap()
    else:
        less = needs[best] - (0 if plan is None else needs[plan])
        memory.warn(SLOWER.format(network=name, size=format_size(less)))
        memory.used[LAYOUT.format(name)] = "plain" if plan is None else "small"
    return plan
