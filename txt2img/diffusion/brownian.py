"""Brownian motion for SDE solvers: a picture's noise depends on its seed, not on the steps.

SDE solvers add a Brownian motion's increments. Drawn step by step, these belong to another path for
every number of steps; here the path is a function of the seed alone, made by Lévy's construction:
an interval whose increment is known is halved again and again, each half's noise from a seed of its
own. There are two clocks:

Ours is the signal-to-noise ratio s = 1 / ratio². In it the noise of SDE-DPM-Solver++ at eta 1 is
exactly dW(s): divide x / alpha by ratio² and a step from a to b adds W(s_b) − W(s_a). So two steps
add what one over both adds, and with more steps the pictures converge to one. The path has no end;
it is cut at powers of two.

k-diffusion's is its sigma (the ratio, or the sigma of a flow), from the least to the greatest of a
schedule, by torchsde's BrownianTree (its _brownian/brownian_interval.py), which A1111 and ComfyUI
draw from.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from torch import Tensor

from txt2img.diffusion.levels import Level

OCTAVES = range(-40, 60)  # our path begins at 2^-40 and ends at 2^60
MAX_DEPTH = 20  # of halvings; then an interval is cut where it is asked for
POOL_SIZE = 24  # words that BrownianTree mixes a seed in
NOISES_CACHED, PLACES_CACHED = 48, 4
TIME_DIGITS = 6  # BrownianTree's times are rounded to its tolerance, 1e-6
SeededNoise = Callable[[int], Tensor]  # seed → standard noise (C, h, w)
NodeNoise = Callable[[int, int], Tensor]  # a node's place in its row, its depth → standard noise
CutAt = Callable[[float, float, float, int], float]  # start, end, time, depth → where to cut


def seed_of(entropy: int, *key: int) -> int:
    """Seed of 32 bits for a node of a tree (numpy's SeedSequence)."""
    sequence = np.random.SeedSequence(entropy=entropy, spawn_key=key, pool_size=POOL_SIZE)
    return int(sequence.generate_state(1)[0])


def bridge(
    total: Tensor, start: float, end: float, time: float, noise: NodeNoise, cut: CutAt
) -> Tensor:
    """Increment from `start` to `time` of a path whose increment from `start` to `end` is `total`.

    A Brownian bridge, by bisection.
    """
    moved, node, depth = total * 0, 0, 0
    while start < time < end:
        middle = cut(start, end, time, depth)
        left, right, length = middle - start, end - middle, end - start
        std = math.sqrt(left * right / length)
        half = total * (left / length) + std * noise(node, depth)
        if time < middle:
            end, total, node = middle, half, 2 * node
        else:
            moved, start, total, node = moved + half, middle, total - half, 2 * node + 1
        depth += 1
    return moved + total if time >= end else moved


@dataclass
class BrownianMotion(ABC):
    """A path of noise (C, h, w) on some clock, the same for the same seed."""

    draw: SeededNoise
    entropy: int
    cached_at: Callable[[float], Tensor] = field(init=False)  # a step asks for the last one's end

    def __post_init__(self) -> None:
        """Cache the last noises and places."""
        self.draw = lru_cache(maxsize=NOISES_CACHED)(self.draw)
        self.cached_at = lru_cache(maxsize=PLACES_CACHED)(self.at)

    @abstractmethod
    def at(self, time: float) -> Tensor:
        """Increment from the path's beginning to `time`, (C, h, w)."""

    def standard(self, start: float, end: float) -> Tensor:
        """Increment from `start` to `end`, scaled to unit variance."""
        return (self.cached_at(end) - self.cached_at(start)) / math.sqrt(abs(end - start))


@dataclass
class BrownianPath(BrownianMotion):
    """Our own path, over the signal-to-noise ratio from 0 on."""

    sums: list[Tensor] = field(default_factory=list)  # increments until 2^-40, 2^-39, …

    def at(self, time: float) -> Tensor:
        """Increment from 0 to `time`, (C, h, w)."""
        first = 2.0 ** OCTAVES[0]
        if time < first:
            return self.at_octave(0) * math.sqrt(time / first)  # near pure noise: any path will do
        octave = min(math.frexp(time)[1] - 1, OCTAVES[-1])
        number = octave - OCTAVES[0]
        start, end = 2.0**octave, 2.0 ** (octave + 1)
        before, after = self.at_octave(number), self.at_octave(number + 1)

        def noise(node: int, depth: int) -> Tensor:
            return self.draw(seed_of(self.entropy, number, node, depth))

        return before + bridge(after - before, start, end, time, noise, midpoint)

    def at_octave(self, number: int) -> Tensor:
        """Increment from 0 to the `number`-th power of two."""
        while len(self.sums) <= number:
            count = len(self.sums)
            length = 2.0 ** (OCTAVES[0] + max(count - 1, 0))
            increment = math.sqrt(length) * self.draw(seed_of(self.entropy, count))
            self.sums.append(self.sums[-1] + increment if count else increment)
        return self.sums[number]

    def __call__(self, a: Level, b: Level) -> Tensor:
        """Standard noise of a step from level a to b, which has some noise left."""
        return self.standard(a.ratio**-2, b.ratio**-2)


def midpoint(start: float, end: float, time: float, depth: int) -> float:
    """Halve an interval; at the greatest depth cut at the time itself."""
    return time if depth == MAX_DEPTH else (start + end) / 2


@dataclass
class BrownianTree(BrownianMotion):
    """torchsde's BrownianTree between two sigmas, as k-diffusion asks it."""

    start: float
    end: float

    def at(self, time: float) -> Tensor:
        """Increment from the tree's start to `time`, (C, h, w)."""
        start, end = round(self.start, TIME_DIGITS), round(self.end, TIME_DIGITS)
        total = self.draw(seed_of(self.entropy)) * math.sqrt(self.end - self.start)

        def noise(node: int, depth: int) -> Tensor:
            return self.draw(seed_of(self.entropy, node, depth))

        return bridge(total, start, end, round(time, TIME_DIGITS), noise, rounded_midpoint)

    def __call__(self, a: Level, b: Level) -> Tensor:
        """Standard noise of a step from level a to b: sigmas fall, so time runs backwards."""
        return self.standard(float32_sigma(a), float32_sigma(b))


def rounded_midpoint(start: float, end: float, time: float, depth: int) -> float:
    """Halve an interval in TIME_DIGITS, so that in the end every time becomes a midpoint."""
    return round(0.5 * (end + start), TIME_DIGITS)


def brownian_tree(draw: SeededNoise, entropy: int, levels: Sequence[Level]) -> BrownianTree:
    """The tree of a schedule's levels."""
    sigmas = [float32_sigma(level) for level in levels if level.ratio]
    return BrownianTree(draw, entropy, min(sigmas), max(sigmas))


def float32_sigma(level: Level) -> float:
    """k-diffusion's sigma of a level, the place on its line, rounded to float32, its dtype."""
    return float(np.float32(level.line))
