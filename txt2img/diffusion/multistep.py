"""Multistep samplers: each step goes by what the steps before it found, for one evaluation.

Two kinds: of slopes along `Level.line` (PLMS, iPNDM, DEIS), and exponential integrators of clean
pictures (DPM-Solver++(3M), RES).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
from torch import Tensor

from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import (
    Level,
    Noise,
    Share,
    State,
    ancestral,
    gap,
    level_left,
    move,
    pairs,
)
from txt2img.diffusion.singlestep import heun_aim

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(48)


def lms(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Linear multistep: Adams and Bashforth's method on uneven steps (Zhang and Chen 2022, ρAB).

    Of order 3, which diffusers' step() takes as an argument: 4 diverges on short flow schedules.
    """
    return multistep(denoise, x, levels, adams, 3, zero=True)


Weights = Callable[[Sequence[float], float], Sequence[float]]  # slopes' positions, end → weights
Aim = Callable[[Denoise, Tensor, Tensor, Level, Level], Tensor]  # denoise, x, x0, a, b → aim


def multistep(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    weights_of: Weights,
    order: int,
    first: Aim | None = None,
    zero: bool = False,
) -> Iterator[State]:
    """Steps along a weighted sum of the last `order` slopes, newest first, on the levels' line.

    The step from the first slope has the aim `first`; the step to the clean picture is Euler's,
    unless `zero`.
    """
    slopes: list[tuple[float, Tensor]] = []  # where on the line, and the slope there; newest first
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        if math.isfinite(a.line):
            slope = (x / a.scale - x0) / a.line
            slopes = [(a.line, slope), *slopes[: order - 1]]
            if first and len(slopes) == 1:
                aim = first(denoise, x, x0, a, b)
            elif b.sigma or zero:
                weights = weights_of([at for at, _ in slopes], b.line)
                for weight, (_, before) in zip(weights[1:], slopes[1:], strict=True):
                    aim = aim + (a.line * weight) * (slope - before)
                if abs(rest := 1 - sum(weights)) > 1e-9:  # diff-sampler's do not sum to 1
                    aim = aim + (a.line * rest) * slope
        x = move(x, aim, a, b)
        yield State(step, x, x0)


def adams(positions: Sequence[float], end: float) -> list[float]:
    """Weight of the slope at each position in the mean slope from positions[0] to end.

    Integrates Lagrange's polynomials by Gauss's rule of two nodes, which is exact for up to four.
    """
    middle, half = (positions[0] + end) / 2, (end - positions[0]) / 2
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [
        sum(
            math.prod((node - other) / (at - other) for other in positions if other != at)
            for node in nodes
        )
        / 2
        for at in positions
    ]


def adams_bashforth(positions: Sequence[float], end: float) -> Sequence[float]:
    """The weights of equal steps, whatever the steps are."""
    return ADAMS_BASHFORTH[len(positions) - 1]


def plms(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Pseudo linear multistep sampling, PNDM without Runge-Kutta steps (Liu et al. 2022, PLMS).

    Adams and Bashforth's weights of order 4; the first step is Heun's, with two evaluations.
    """
    return multistep(denoise, x, levels, adams_bashforth, 4, first=heun_aim, zero=True)


def ipndm(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Improved PNDM (Zhang and Chen 2022, iPNDM): PLMS whose first step is Euler's."""
    return multistep(denoise, x, levels, adams_bashforth, 4)


def ipndm_v(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    as_diff_sampler: bool = False,
) -> Iterator[State]:
    """Improved PNDM of order 4 for uneven steps (Zhang and Chen 2022), by Adams' own weights.

    Those of diff-sampler's solvers.py, which ComfyUI uses, are right for equal steps alone.
    """
    return multistep(denoise, x, levels, diff_sampler_weights if as_diff_sampler else adams, 4)


def diff_sampler_weights(positions: Sequence[float], end: float) -> Sequence[float]:
    """Weights of slopes at uneven positions as in diff-sampler's sample_ipndm_v."""
    at = [end, *positions]
    h = [at[i] - at[i + 1] for i in range(len(at) - 1)]  # newest first
    order = len(positions)
    if order == 1:
        return (1.0,)
    half = h[0] / (2 * h[1])
    weights = [1 + half, -half, 0.0, 0.0]
    two, step, back = h[0] + h[1], 0.0, 0.0
    if order >= 3:
        back = h[1] + h[2]
        part = (1 - h[0] / (3 * two) * (h[0] * two) / (h[1] * back)) / 2
        step = h[1] / h[2]
        for i, factor in enumerate((1.0, -(1 + step), step)):
            weights[i] += part * factor
    if order == 4:
        three, far = two + h[2], h[2] + h[3]
        part = (1 - h[0] / (3 * two)) / 2 + (1 - h[0] / (2 * two)) * h[0] / (6 * three)
        part *= h[0] * two * three / (h[1] * back * (back + h[3]))
        reach = h[1] * back / (h[2] * far)
        for i, factor in enumerate(
            (1.0, -(1 + step + reach), step + reach * (1 + h[2] / h[3]), -reach * step)
        ):
            weights[i] += part * factor
    return weights[:order]


def deis(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    clock: Callable[[float], float] | None = None,
    order: int = 3,
) -> Iterator[State]:
    """Diffusion exponential integrator sampling (Zhang and Chen 2022, tAB-DEIS), of slopes.

    Polynomials through the slopes on a `clock` of the line are integrated along it. The clock is
    the time of a variance-preserving process, as in ComfyUI; diffusers' is the logarithm, order 2.
    """
    clock = clock or vp_time

    def weights(positions: Sequence[float], end: float) -> Sequence[float]:
        return lagrange_weights(positions, end, clock)

    return multistep(denoise, x, levels, weights, order)


@cache
def vp_betas(low: float = 0.002, high: float = 80.0, start: float = 1e-3) -> tuple[float, float]:
    """Growth and start of the betas whose process has the ratios low … high at start … 1."""
    ends = math.log1p(low**2), math.log1p(high**2)
    growth = 2 * (ends[0] / start - ends[1]) / (start - 1)
    return growth, ends[1] - growth / 2


def vp_time(ratio: float) -> float:
    """Time 0 … 1 at which a process of linear betas has a ratio (Karras et al. 2022, table 1)."""
    growth, start = vp_betas()
    return (math.sqrt(start**2 + 2 * growth * math.log1p(ratio**2)) - start) / growth


def lagrange_weights(
    positions: Sequence[float], end: float, clock: Callable[[float], float]
) -> Sequence[float]:
    """Mean, from positions[0] to end, of Lagrange's polynomials in the clock's time.

    By Gauss's rule in equal steps of the logarithm, where the polynomials are smooth.
    """
    if len(positions) == 1:
        return (1.0,)
    times = [clock(at) for at in positions]
    middle, half = (
        math.log(positions[0] * end) / 2,
        math.log(end / positions[0]) / 2,
    )
    nodes = [math.exp(middle + half * float(node)) for node in NODES]
    scale = half / (end - positions[0])
    means = [0.0] * len(positions)
    for node, weight in zip(nodes, WEIGHTS, strict=True):
        now = clock(node)
        for i, time in enumerate(times):
            others = (other for other in times if other != time)
            share = math.prod((now - other) / (time - other) for other in others)
            means[i] += float(weight) * node * scale * share
    return means


def exponential(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.0,
    order: int = 3,
    on_line: bool = False,
    share: Share = ancestral,
) -> Iterator[State]:
    """DPM-Solver++(3M) as an SDE, after k-diffusion's sample_dpmpp_3m_sde; order 2 is 2M "heun".

    Its clock is half_log_snr. `on_line` it is the logarithm of the line: RES of order 2 (Zhang et
    al. 2023, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models
    Sampling"), ancestral by going down to the noise that is left.
    """
    history: list[tuple[Tensor, float]] = []  # x0 and the step size after it, newest first
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        fresh = share(a, b, eta)
        left = level_left(b, fresh)
        h = drift = math.inf
        if left.ratio and math.isfinite(a.line):
            drift = math.log(a.line / left.line) if on_line else gap(a, left)
            h = drift if on_line else gap(a, b)
        if math.isfinite(drift):
            aim = x0 + extrapolation(x0, history, h, drift)
        x = move(x, aim, a, b, fresh, noise)
        history = [(x0, h), *history[: order - 2]]
        yield State(step, x, x0)


def extrapolation(
    x0: Tensor, history: Sequence[tuple[Tensor, float]], h: float, drift: float
) -> Tensor | float:
    """What the last changes of x0 add to the aim of a step of size h, with fresh noise `drift`."""
    if not history:
        return 0.0
    before, h_last = history[0]
    gain = -math.expm1(-drift)
    phi_2 = 1 - gain / drift
    first = (x0 - before) * (h / h_last)
    if len(history) == 1:
        return first * (phi_2 / gain)
    earlier, h_earlier = history[1]
    second = first - (before - earlier) * (h / h_earlier)
    share, phi_3 = h_last / h, phi_2 / drift - 0.5
    both = share + h_earlier / h
    # At pure noise before: both are infinite, and there is no second change.
    bend = share / both if math.isfinite(both) else 0.0
    return ((first + second * bend) * phi_2 - second * (phi_3 / both)) / gain
