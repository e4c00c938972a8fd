"""The noise of requests: each image's from its own seed, by the rules that it is drawn by.

It is drawn on the CPU, one image at a time, so that it is the same on every device and in every
batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from txt2img.diffusion.brownian import BrownianPath, brownian_tree
from txt2img.diffusion.levels import Level, Noise, Process
from txt2img.diffusion.rng import noise_source, noise_stream
from txt2img.errors import BadRequest
from txt2img.request import Request, compat
from txt2img.request.compat import Rules
from txt2img.request.fields import SEEDS

Shape = tuple[int, int, int]  # C, h, w


def starting_level(request: Request, rules: Rules, levels: Sequence[Level], drawn: int) -> Level:
    """The level that a picture is noised to, to be drawn by the last `drawn` steps of `levels`.

    In A1111 DDIM draws from one level below (sd_samplers_timesteps.py, sample_img2img).
    """
    above = compat.follows_old_ddim(request, rules)
    return levels[max(len(levels) - 1 - drawn - above, 0)]


def initial_noise_scale(
    process: Process, request: Request, rules: Rules, start: Level, from_noise: bool = True
) -> float:
    """The standard deviation of the initial noise, at the level `start`."""
    is_top = start.ratio >= process.entry(process.steps - 1).ratio * (1 - 1e-5)
    at_unit = compat.starts_at_unit_variance(rules, request, is_top, from_noise)
    return 1.0 if at_unit else start.sigma


def fresh_noise(
    requests: Sequence[Request],
    rules: Rules,
    latent: Shape,
    device: torch.device,
    skipped: tuple[int, int] = (0, 0),
) -> Callable[[], Tensor]:
    """Noise (B, C, h, w), float32, new at each call: first the initial one, then the steps'.

    So many draws are `skipped` before the initial one, and after it: the VAE's.
    """
    streams = [image_noise(request, rules, latent, skipped) for request in requests]
    return lambda: _to_device([next(noise) for noise in streams], device)


def step_noise(
    requests: Sequence[Request],
    rules: Rules,
    levels: Sequence[Level],
    latent: Shape,
    device: torch.device,
    fresh: Callable[[], Tensor],
) -> Noise:
    """The noise (B, C, h, w) of steps: along each image's Brownian path, or `fresh` each time."""
    sampler = requests[0].sampler
    if sampler is None or not sampler.sde or rules.sde_noise is None:
        return lambda a, b: fresh()
    paths = [brownian_path(request, rules, levels, latent) for request in requests]
    return lambda a, b: _to_device([path(a, b) for path in paths], device)


def image_noise(
    request: Request, rules: Rules, latent: Shape, skipped: tuple[int, int] = (0, 0)
) -> Iterator[Tensor]:
    """One image's noise (C, h, w), without end. BadRequest."""
    seed = request.seed or 0
    first = later = noise_source(rules.init_rng, seed, latent)
    if rules.step_rng or rules.seed_delta:
        later = noise_source(
            rules.step_rng or rules.init_rng, (seed + rules.seed_delta) % SEEDS, latent
        )
    other = None
    if request.subseed_strength:
        if request.subseed is None:
            raise BadRequest("a subseed strength needs a subseed: give --subseed")
        other = noise_source(rules.init_rng, request.subseed, latent)
    for _ in range(skipped[0]):
        first()
    noise = noise_stream(first, later, other, request.subseed_strength)
    yield next(noise)
    yield from islice(noise, skipped[1], None)


def vae_noise(request: Request, rules: Rules, latent: Shape, skip: int = 0) -> Tensor:
    """The noise (C, h, w) that samples a picture's latent: the seed's first, or a later one."""
    source = noise_source(rules.init_rng, request.seed or 0, latent)
    return [source() for _ in range(skip + 1)][-1]


def brownian_path(request: Request, rules: Rules, levels: Sequence[Level], latent: Shape) -> Noise:
    """One image's Brownian path, a tree where the rules ask for it and the start is finite."""
    seed = request.seed or 0

    def draw(number: int) -> Tensor:
        return noise_source(rules.init_rng, number, latent)()

    if rules.sde_noise == "tree" and math.isfinite(levels[0].line):
        return brownian_tree(draw, seed, levels)
    return BrownianPath(draw, (seed + rules.seed_delta) % SEEDS)


def _to_device(noises: list[Tensor], device: torch.device) -> Tensor:
    """Stack the noise of several images (C, h, w) and move it to a device.

    A GPU copies from pinned memory without making the host wait.
    """
    stacked = torch.stack(noises)
    if device.type == "cuda":
        return stacked.pin_memory().to(device, non_blocking=True)
    return stacked.to(device)
