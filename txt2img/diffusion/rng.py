"""Noise as programs draw it: torch's on the processor, and Nvidia's Philox without a card."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, int, int]  # C, h, w
Draw = Callable[[], Tensor]
Words = NDArray[np.uint64]  # 32 bits of each are used

ROUND = (0xD2511F53, 0xCD9E8D57)
BUMP = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
EVERY_THREAD = 2**31  # more than any latent has numbers


def philox(counter: list[Words], seed: int) -> list[Words]:
    """Four 32-bit numbers for each counter: Philox 4x32 of ten rounds (Salmon et al. 2011)."""
    a, b, c, d = counter
    keys = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)]
    for _ in range(10):
        one, two = a * np.uint64(ROUND[0]), c * np.uint64(ROUND[1])
        a, b, c, d = (
            (two >> np.uint64(32)) ^ b ^ keys[0],
            two & LOW,
            (one >> np.uint64(32)) ^ d ^ keys[1],
            one & LOW,
        )
        keys = [(key + np.uint64(add)) & LOW for key, add in zip(keys, BUMP, strict=True)]
    return [a, b, c, d]


def normals(x: Words, y: Words) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two normal numbers of each two 32-bit ones, as cuRAND has it (Box and Muller 1958)."""
    scale = np.float32(2.3283064e-10)
    turn = np.float32(2.3283064e-10 * 6.2831855)
    u = x.astype(np.float64) * scale + scale / 2
    v = y.astype(np.float64) * turn + turn / 2
    radius = np.sqrt(-2 * np.log(u))
    return (radius * np.sin(v)).astype(np.float32), (radius * np.cos(v)).astype(np.float32)


class Philox:
    """Draws what torch.randn draws on an Nvidia card of so many threads, on any machine.

    A thread gives four numbers a round, `threads` apart; up to `threads` numbers, so on every
    large enough card and in A1111's source "NV", each thread gives one.
    """

    def __init__(self, seed: int, threads: int = EVERY_THREAD) -> None:
        self.seed, self.threads, self.round = seed, threads, 0

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """The next standard normal numbers, float32."""
        count = math.prod(shape)
        index = np.arange(min(count, self.threads), dtype=np.uint64)
        zero, numbers = np.zeros_like(index), list[NDArray[np.float32]]()
        while sum(map(len, numbers)) < count:
            counter = [zero + np.uint64(self.round), zero, index, zero]
            a, b, c, d = philox(counter, self.seed)
            numbers += [*normals(a, b), *normals(c, d)]
            self.round += 1
        return torch.from_numpy(np.concatenate(numbers)[:count].reshape(shape))


def source(name: str, seed: int, shape: Shape) -> Draw:
    """Noise (C, h, w) of a seed, another at each call: from "cpu", "nv" or "nv:THREADS"."""
    kind, _, threads = name.partition(":")
    if kind == "nv":
        generator = Philox(seed, int(threads) if threads else EVERY_THREAD)
        return lambda: generator.randn(shape)
    own = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=own)


def stream(first: Draw, later: Draw, other: Draw | None, share: float) -> Iterator[Tensor]:
    """One picture's noise: its first, with a `share` of the `other` seed's, then later ones."""
    noise = first()
    yield noise if other is None or not share else slerp(share, noise, other())
    while True:
        yield later()


def slerp(share: float, a: Tensor, b: Tensor) -> Tensor:
    """From a (C, h, w) to b along a circle, column by column (Shoemake 1985), as A1111's rng.py.

    Where both are nearly alike it goes straight, and as A1111 does, from b to a.
    """
    cosine = (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1)
    if cosine.mean() > 0.9995:
        return a * share + b * (1 - share)
    angle = torch.acos(cosine)
    parts = [torch.sin(part * angle) / torch.sin(angle) for part in (1 - share, share)]
    return parts[0].unsqueeze(1) * a + parts[1].unsqueeze(1) * b
