"""The noise of requests: each picture's from its own seed, by the rules that it is drawn by.

It is drawn on the CPU, one picture at a time, so that it is the same on every device and in every
batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from txt2img.diffusion.brownian import BrownianPath, brownian_tree
from txt2img.diffusion.levels import Level
from txt2img.diffusion.rng import noise_source, noise_stream
from txt2img.diffusion.samplers import Noise
from txt2img.errors import BadRequest
from txt2img.request import Request
from txt2img.request.compat import rules
from txt2img.request.fields import SEEDS


def fresh_noise(
    requests: Sequence[Request], latent: tuple[int, int, int], device: torch.device
) -> Callable[[], Tensor]:
    """Noise (B, C, h, w), float32, another at each call."""
    streams = [own_noise(request, latent) for request in requests]
    return lambda: sent([next(noise) for noise in streams], device)


def sent(noises: list[Tensor], device: torch.device) -> Tensor:
    """Noise of several pictures (C, h, w) together (B, C, h, w) on a device.

    From memory that stays in its place a card takes it without the host waiting for that.
    """
    together = torch.stack(noises)
    if device.type == "cuda":
        return together.pin_memory().to(device, non_blocking=True)
    return together.to(device)


def own_noise(request: Request, latent: tuple[int, int, int]) -> Iterator[Tensor]:
    """One picture's noise (C, h, w), again and again, by its request's rules. BadRequest."""
    found, seed = rules(request), request.seed or 0
    first = later = noise_source(found.init_rng, seed, latent)
    if found.step_rng or found.seed_delta:
        later = noise_source(
            found.step_rng or found.init_rng, (seed + found.seed_delta) % SEEDS, latent
        )
    other = None
    if request.subseed_strength:
        if request.subseed is None:
            raise BadRequest("a subseed strength needs a subseed: give --subseed")
        other = noise_source(found.init_rng, request.subseed, latent)
    return noise_stream(first, later, other, request.subseed_strength)


def step_noise(
    requests: Sequence[Request],
    levels: Sequence[Level],
    latent: tuple[int, int, int],
    device: torch.device,
    fresh: Callable[[], Tensor],
) -> Noise:
    """The noise (B, C, h, w) of steps: along each picture's own path, or `fresh` at each call."""
    sampler = requests[0].sampler
    if sampler is None or not sampler.sde or rules(requests[0]).sde_noise is None:
        return lambda a, b: fresh()
    paths = [own_path(request, levels, latent) for request in requests]
    return lambda a, b: sent([path(a, b) for path in paths], device)


def own_path(request: Request, levels: Sequence[Level], latent: tuple[int, int, int]) -> Noise:
    """One picture's path, by its request's rules; from pure noise it is always our own."""
    found, seed = rules(request), request.seed or 0
    kind = found.init_rng

    def draw(number: int) -> Tensor:
        return noise_source(kind, number, latent)()

    if found.sde_noise == "tree" and math.isfinite(levels[0].ratio):
        return brownian_tree(draw, seed, levels)
    return BrownianPath(draw, (seed + found.seed_delta) % SEEDS)
