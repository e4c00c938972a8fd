"""DPM-Solver of orders 1 to 3, fast and adaptive (Lu et al. 2022), after k-diffusion's.

Both take steps of their own from the first level to the last with noise, equal or adapted in
t = -ln(line). There the picture is looked at once more; unless `clean` what noise there is stays in
it, as in k-diffusion.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import (
    Curve,
    Level,
    Noise,
    State,
    ancestral,
    level_at,
    level_left,
    move,
    pairs,
)

RTOL, ATOL = 0.05, 0.0078
FIRST_STEP, SAFETY = 0.05, 0.81
T_PRECISION = 1e-5


@dataclass
class Step:
    """Looks at a network within one step from y = x / scale at t; none is taken twice."""

    denoise: Denoise
    curve: Curve
    y: Tensor
    t: float
    slopes: dict[float, Tensor] = field(default_factory=dict)
    x0: Tensor = field(init=False)  # of the first look

    def slope(self, y: Tensor, t: float, at: float) -> Tensor:
        """The slope of y along the line at t, which is `at` of the step."""
        if at not in self.slopes:
            level = level_at(math.exp(-t), self.curve)
            x0 = self.denoise(y * level.scale, level)
            if not self.slopes:
                self.x0 = x0
            self.slopes[at] = (y - x0) / level.line
        return self.slopes[at]

    def end(self, t: float, order: int, r: float | None = None) -> Tensor:
        """y at t by DPM-Solver of an order; `r` is where order 2 looks, of the step."""
        h, line = t - self.t, math.exp(-t)
        first = self.slope(self.y, self.t, 0.0)
        y = self.y - line * math.expm1(h) * first
        if order == 1:
            return y
        r = r or (1 / 3 if order == 3 else 1 / 2)
        second = self.slope(*self._at(r, h, first), r)
        if order == 2:
            return y - line / (2 * r) * math.expm1(h) * (second - first)
        middle, place = self._at(2 / 3, h, first)
        middle = middle - math.exp(-place) * 2 * phi(2 / 3 * h) * (second - first)
        third = self.slope(middle, place, 2 / 3)
        return y - line * 1.5 * phi(h) * (third - first)

    def _at(self, r: float, h: float, first: Tensor) -> tuple[Tensor, float]:
        place = self.t + r * h
        return self.y - math.exp(-place) * math.expm1(r * h) * first, place


def phi(h: float) -> float:
    """(e^h - 1) / h - 1, of solvers of order 3."""
    return math.expm1(h) / h - 1


def down_to(s: float, t: float, end: float, eta: float, curve: Curve) -> tuple[float, float]:
    """Where an ancestral step from s to t goes down to, at most `end`, and t's fresh sigma."""
    if not eta:
        return t, 0.0
    a, b = level_at(math.exp(-s), curve), level_at(math.exp(-t), curve)
    down = min(end, -math.log(level_left(b, ancestral(a, b, eta)).line))
    left = level_at(math.exp(-down), curve)
    return down, math.sqrt(max(b.sigma**2 - (left.ratio * b.alpha) ** 2, 0.0))


def noised(step: Step, y: Tensor, down: float, t: float, fresh: float, noise: Noise) -> Tensor:
    """x at t, from y at `down` and the fresh noise that takes it back up."""
    left, level = level_at(math.exp(-down), step.curve), level_at(math.exp(-t), step.curve)
    x = y * (left.scale * level.alpha / left.alpha)
    return x + fresh * noise(level_at(math.exp(-step.t), step.curve), level) if fresh else x


def opening(
    denoise: Denoise, x: Tensor, levels: Sequence[Level]
) -> Generator[State, None, tuple[Tensor, Sequence[Level]]]:
    """Euler's steps where there is no finite step size: from pure noise, and if it is the only one.

    Returns x and the levels that are left.
    """
    for step, (a, b) in pairs(levels):
        if math.isfinite(a.line) and (b.ratio or step < len(levels) - 1 or step > 2):
            return x, levels[step - 1 :]
        x0 = denoise(x, a)
        x = move(x, x0, a, b)
        yield State(step, x, x0)
    return x, ()


def ending(denoise: Denoise, x: Tensor, level: Level, clean: bool) -> Tensor:
    """The picture at the last level with noise."""
    return denoise(x, level) if clean else x / level.scale


def dpm_fast(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.0,
    clean: bool = True,
) -> Iterator[State]:
    """DPM-Solver-fast: steps of order 3, and what is left of the evaluations, one a step.

    k-diffusion's sample_dpm_fast, whose eta is 0 by default, and 1 in A1111.
    """
    steps = len(levels) - 1
    x, levels = yield from opening(denoise, x, levels)
    looks = len(levels) - 1
    if looks < 1:
        return
    done, curve, m = steps - looks, levels[0].curve, looks // 3 + 1
    start, end = span(levels)
    orders = [3] * (m - 2) + [2, 1] if looks % 3 == 0 else [3] * (m - 1) + [looks % 3]
    for i, order in enumerate(orders):
        s, t = (start + (end - start) * k / m for k in (i, i + 1))
        step = Step(denoise, curve, x / level_at(math.exp(-s), curve).scale, s)
        down, fresh = down_to(s, t, end, eta, curve)
        y = step.end(down, order)
        x = noised(step, y, down, t, fresh, noise)
        for _ in range(order):
            done += 1
            if done == steps:
                x = ending(denoise, x, level_at(math.exp(-t), curve), clean)
            yield State(done, x, step.x0)


def dpm_adaptive(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.0,
    clean: bool = True,
) -> Iterator[State]:
    """DPM-Solver-23: steps of order 3 whose sizes keep the difference from order 2 small.

    k-diffusion's sample_dpm_adaptive. It looks as often as it needs to, whatever the levels; a
    state is yielded for each level that is passed. For one picture: errors are of the whole batch.
    """
    steps = len(levels) - 1
    x, levels = yield from opening(denoise, x, levels)
    if len(levels) < 2:
        return
    curve, (t, end), h, x_low = levels[0].curve, span(levels), FIRST_STEP, None
    for number, (_, b) in enumerate(pairwise(levels), start=steps - len(levels) + 2):
        goal = min(-math.log(b.line), end) if b.ratio else end
        while t < goal - T_PRECISION:
            step = Step(denoise, curve, x / level_at(math.exp(-t), curve).scale, t)
            later = min(end, t + h)
            down, fresh = down_to(t, later, end, eta, curve)
            low, high = step.end(down, 2, 1 / 3), step.end(down, 3)
            before = step.y if x_low is None else x_low
            error = error_of(low, high, before)
            factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / (1.5 if eta else 3)) - 1)
            h *= factor
            if factor >= SAFETY or not math.isfinite(error):
                x_low, x0 = low, step.x0
                x = noised(step, high, down, later, fresh, noise)
                t = later if math.isfinite(error) else end  # there is no picture any more
        if number == steps:
            x = ending(denoise, x, level_at(math.exp(-t), curve), clean)
        yield State(number, x, x0)


def span(levels: Sequence[Level]) -> tuple[float, float]:
    """t of the first level and of the last one with noise."""
    last = levels[-1] if levels[-1].ratio else levels[-2]
    return -math.log(levels[0].line), -math.log(last.line)


def error_of(low: Tensor, high: Tensor, before: Tensor) -> float:
    """Difference of two solutions in units of what is allowed, root mean square."""
    allowed = (RTOL * torch.maximum(low.abs(), before.abs())).clamp_(min=ATOL)
    return float(((low - high) / allowed).square().mean().sqrt())
