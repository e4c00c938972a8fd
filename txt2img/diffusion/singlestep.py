"""Single-step samplers: Heun, DPM2, Restart, CFG++, ER-SDE."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import (
    Level,
    Noise,
    Share,
    State,
    ancestral,
    level_at,
    level_left,
    move,
    pairs,
)

RESTART = 0.1, 2.0  # ratios between which Restart goes back up, as in A1111
ER_POINTS = 200  # of the integrals of ER-SDE


def heun(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Heun's second-order method, two evaluations a step (Karras et al. 2022, Algorithm 1).

    The mean of both slopes is one Euler step, whose aim is x0 moved on by its scaled change. The
    last step, and the first from pure noise of a diffusion, where `line` is infinite, are Euler's.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        x = move(x, heun_aim(denoise, x, x0, a, b), a, b)
        yield State(step, x, x0)


def heun_aim(denoise: Denoise, x: Tensor, x0: Tensor, a: Level, b: Level) -> Tensor:
    """Aim of Heun's step, by a second look at b; x0 where there is none."""
    if not b.sigma or math.isinf(a.line):
        return x0
    return x0 + (denoise(move(x, x0, a, b), b) - x0) * a.line / (2 * b.line)


def dpm2(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.0,
    share: Share = ancestral,
) -> Iterator[State]:
    """DPM-Solver-2 on Karras' line, by way of the geometric mean; two evaluations a step.

    After k-diffusion's sample_dpm_2, and sample_dpm_2_ancestral at eta 1. The last step, and the
    first from pure noise of a diffusion, are Euler's.
    """
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        fresh = share(a, b, eta)
        down = level_left(b, fresh).line
        if down and math.isfinite(a.line):
            half = level_at(math.sqrt(a.line * down), a.curve)
            aim = x0 + (denoise(move(x, x0, a, half), half) - x0) * (a.line / half.line)
        x = move(x, aim, a, b, fresh, noise)
        yield State(step, x, x0)


def restart(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Restart sampling with Heun's steps (Xu et al. 2023, "Restart Sampling for Improving …").

    As A1111's restart_sampler: from 20 steps on the levels are Karras', and some steps go back up
    by fresh noise, once or twice, so that there are as many as asked for.
    """
    last = levels[0]
    for step, (a, b) in enumerate(restart_steps(levels), start=1):
        if a.ratio > last.ratio:
            keep = a.alpha / last.alpha
            fresh = math.sqrt(a.sigma**2 - (keep * last.sigma) ** 2)
            x = keep * x + fresh * noise(last, a)
        x0 = denoise(x, a)
        x = move(x, heun_aim(denoise, x, x0, a, b), a, b)
        last = b
        yield State(step, x, x0)


def restart_steps(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """The steps of Restart, as many as between the levels."""
    steps = len(levels) - 1
    head = [level for level in levels if math.isinf(level.line)]
    finite = [level for level in levels if level.ratio and math.isfinite(level.line)]
    times, back = (1, 9) if steps < 36 else (2, steps // 4)
    if steps < 20 or len(finite) < 2:
        return list(pairwise(levels))
    count = steps - back * times - len(head)
    main = [*head, *karras_between(finite[0], finite[-1], count), replace(levels[-1], ratio=0.0)]
    low, high = (min(main, key=lambda one: abs(one.ratio - at)) for at in RESTART)
    if not low.ratio < high.ratio < math.inf:
        return list(pairwise(levels))
    again = list(pairwise(karras_between(high, low, back + 1)))
    at = main.index(low)
    pieces = list(pairwise(main))
    return [*pieces[:at], *again * times, *pieces[at:]]


def karras_between(top: Level, low: Level, count: int) -> list[Level]:
    """Levels from one to another by equal steps of line^(1/7) (Karras et al. 2022, equation 5)."""
    start, end = (level.line ** (1 / 7) for level in (top, low))
    gaps = max(count - 1, 1)
    inner = [
        level_at((start + (end - start) * i / gaps) ** 7, top.curve) for i in range(1, count - 1)
    ]
    return [top, *inner, low][: max(count, 1)]


def euler_cfg_pp(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.0,
    share: Share = ancestral,
) -> Iterator[State]:
    """Euler and DDIM by CFG++ (Chung et al. 2024): noise as it is predicted without guidance.

    After ComfyUI's sample_euler_ancestral_cfg_pp and A1111's ddim_cfgpp.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        if b.sigma:
            unguided = denoise(x, replace(a, guided=False))
            x = move(x, unguided, a, b, share(a, b, eta), noise)
            x = x.add_(x0 - unguided, alpha=b.alpha)
        else:
            x = x0
        yield State(step, x, x0)


def er_sde(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Extended reverse-time SDE solver of order 3 (Cui et al. 2023, VP ER-SDE-Solver-3).

    After ComfyUI's sample_er_sde, whose integrals are sums of 200 points.
    """
    history: list[tuple[float, Tensor, Tensor | float]] = []  # ratio, x0, its slope; newest first
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        if not b.sigma:
            yield State(step, x0, x0)
            return
        left = 0.0 if math.isinf(a.ratio) else er_scale(b.ratio) / er_scale(a.ratio)
        slope: Tensor | float = 0.0
        if history and math.isfinite(history[0][0]):
            before, x0_last, slope_last = history[0]
            slope = (x0 - x0_last) / (a.ratio - before)
            first, second = er_integrals(a.ratio, b.ratio)
            bend: Tensor | float = 0.0
            if len(history) > 1 and math.isfinite(history[1][0]):
                bend = (slope - slope_last) / ((a.ratio - history[1][0]) / 2)
            aim = x0 + (first * slope + second * bend) / (1 - left)
        keep = b.ratio * b.alpha  # the noise of b, of which `left` of a's stays
        stays = left * a.ratio * b.alpha if left else 0.0
        fresh = math.sqrt(max(keep**2 - stays**2, 0.0))
        x = move(x, aim, a, b, fresh, noise)
        history = [(a.ratio, x0, slope), *history[:1]]
        yield State(step, x, x0)


def er_scale(ratio: float) -> float:
    """The noise scale function of ER-SDE that the paper found best (ER-SDE 5)."""
    return ratio * (math.exp(ratio**0.3) + 10)


def er_integrals(a: float, b: float) -> tuple[float, float]:
    """Factors of x0's first and second derivative in a step between two ratios."""
    size = (a - b) / ER_POINTS
    places = [b + i * size for i in range(ER_POINTS)]
    inverse = [1 / er_scale(place) for place in places]
    first = sum(inverse) * size
    second = sum((p - a) * part for p, part in zip(places, inverse, strict=True)) * size
    scale, h = er_scale(b), b - a
    return h + first * scale, h**2 / 2 + second * scale
