"""One Brownian path a picture: the same noise for the same stretch, however many steps it takes.

SDE solvers add a Brownian motion's increments. Drawn step by step they belong to another path for
every number of steps; here the path is a function of the seed alone, made by Lévy's construction:
a stretch whose increment is known is halved again and again, each half's noise from a seed of its
own. Two clocks:

Ours is the signal-to-noise ratio s = 1 / ratio². In it the noise of SDE-DPM-Solver++ at eta 1 is
exactly dW(s): divide x / alpha by ratio² and a step from a to b adds W(s_b) − W(s_a). So two steps
add what one over both adds, and more steps lead nearer to one and the same picture. The path has
no end; it is cut at powers of two.

k-diffusion's is the ratio, which it calls sigma, from the least to the greatest of a schedule, by
torchsde's BrownianTree (its _brownian/brownian_interval.py), of which A1111 and ComfyUI draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from torch import Tensor

from txt2img.diffusion.levels import Level

OCTAVES = range(-40, 60)  # ours begins at 2^-40, and ends at 2^60
HALVINGS = 20  # then a stretch is cut where it is asked, by a bridge too
POOL = 24  # words that a seed is mixed in, as BrownianTree has it
DRAWN, PLACES = 48, 4  # noises and places on the path that are remembered
DIGITS = 6  # of a time in BrownianTree, whose tolerance is 1e-6
Seeded = Callable[[int], Tensor]  # the standard noise (C, h, w) of a seed
Node = Callable[[int, int], Tensor]  # a node's place in its row, its depth → standard noise
Cut = Callable[[float, float, float, int], float]  # start, end, time, depth → where to cut


def seed_of(entropy: int, *key: int) -> int:
    """A seed of 32 bits for a place in a tree (numpy's SeedSequence)."""
    sequence = np.random.SeedSequence(entropy=entropy, spawn_key=key, pool_size=POOL)
    return int(sequence.generate_state(1)[0])


def bridge(whole: Tensor, start: float, end: float, time: float, noise: Node, cut: Cut) -> Tensor:
    """How far a path gets from `start` until `time`, that goes `whole` until `end`."""
    gone, node, depth = whole * 0, 0, 0
    while start < time < end:
        middle = cut(start, end, time, depth)
        left, right, length = middle - start, end - middle, end - start
        spread = math.sqrt(left * right / length)
        half = whole * (left / length) + spread * noise(node, depth)
        if time < middle:
            end, whole, node = middle, half, 2 * node
        else:
            gone, start, whole, node = gone + half, middle, whole - half, 2 * node + 1
        depth += 1
    return gone + whole if time >= end else gone


@dataclass
class Path:
    """Our own path, over the signal-to-noise ratio from 0 on."""

    draw: Seeded
    entropy: int
    sums: list[Tensor] = field(default_factory=list)  # how far it is at 2^-40, 2^-39, …
    where: Callable[[float], Tensor] = field(init=False)  # `at`, which is asked twice in a row

    def __post_init__(self) -> None:
        """Remember what was drawn last."""
        self.draw = lru_cache(maxsize=DRAWN)(self.draw)
        self.where = lru_cache(maxsize=PLACES)(self.at)

    def at(self, time: float) -> Tensor:
        """How far the path is from its beginning, (C, h, w)."""
        first = 2.0 ** OCTAVES[0]
        if time < first:
            return self.until(0) * math.sqrt(time / first)  # all but noise, whatever it is
        octave = min(math.frexp(time)[1] - 1, OCTAVES[-1])
        number = octave - OCTAVES[0]
        start, end = 2.0**octave, 2.0 ** (octave + 1)
        before, after = self.until(number), self.until(number + 1)

        def noise(node: int, depth: int) -> Tensor:
            return self.draw(seed_of(self.entropy, number, node, depth))

        return before + bridge(after - before, start, end, time, noise, halved)

    def until(self, number: int) -> Tensor:
        """How far it is at the `number`-th power of two."""
        while len(self.sums) <= number:
            count = len(self.sums)
            length = 2.0 ** (OCTAVES[0] + max(count - 1, 0))
            more = math.sqrt(length) * self.draw(seed_of(self.entropy, count))
            self.sums.append(self.sums[-1] + more if count else more)
        return self.sums[number]

    def __call__(self, a: Level, b: Level) -> Tensor:
        """The standard noise of a step from level a to b, which has some left."""
        start, end = snr(a), snr(b)
        return (self.where(end) - self.where(start)) / math.sqrt(end - start)


def snr(level: Level) -> float:
    """The signal-to-noise ratio of a level that has noise."""
    return level.ratio**-2


def halved(start: float, end: float, time: float, depth: int) -> float:
    """The middle; at the greatest depth the time itself."""
    return time if depth == HALVINGS else (start + end) / 2


@dataclass
class Tree:
    """torchsde's BrownianTree between two ratios, as k-diffusion asks it."""

    draw: Seeded
    entropy: int
    start: float
    end: float
    where: Callable[[float], Tensor] = field(init=False)

    def __post_init__(self) -> None:
        """Remember what was drawn last."""
        self.draw = lru_cache(maxsize=DRAWN)(self.draw)
        self.where = lru_cache(maxsize=PLACES)(self.at)

    def at(self, time: float) -> Tensor:
        """How far the path is from its start, (C, h, w)."""
        start, end = round(self.start, DIGITS), round(self.end, DIGITS)
        whole = self.draw(seed_of(self.entropy)) * math.sqrt(self.end - self.start)

        def noise(node: int, depth: int) -> Tensor:
            return self.draw(seed_of(self.entropy, node, depth))

        return bridge(whole, start, end, round(time, DIGITS), noise, rounded)

    def __call__(self, a: Level, b: Level) -> Tensor:
        """The standard noise of a step from level a to b: ratios fall, it is against the path."""
        high, low = single(a.ratio), single(b.ratio)
        return (self.where(low) - self.where(high)) / math.sqrt(high - low)


def rounded(start: float, end: float, time: float, depth: int) -> float:
    """The middle, in so many digits: so every time that is asked for becomes one at last."""
    return round(0.5 * (end + start), DIGITS)


def tree(draw: Seeded, entropy: int, levels: Sequence[Level]) -> Tree:
    """The tree of a schedule's levels."""
    ratios = [single(level.ratio) for level in levels if level.ratio]
    return Tree(draw, entropy, min(ratios), max(ratios))


def single(ratio: float) -> float:
    """A ratio as k-diffusion has it: in float32."""
    return float(np.float32(ratio))
