"""Random noise: torch's CPU generator, and Nvidia's Philox computed without a card."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, int, int]  # C, h, w
Draw = Callable[[], Tensor]
UInt32s = NDArray[np.uint64]  # only the low 32 bits are used

ROUND_FACTORS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW_BITS = np.uint64(0xFFFFFFFF)
MAX_THREADS = 2**31  # more than any latent has numbers


def philox(counter: list[UInt32s], seed: int) -> list[UInt32s]:
    """Philox 4x32, ten rounds: four 32-bit numbers for each counter (Salmon et al. 2011)."""
    a, b, c, d = counter
    keys = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)]
    for _ in range(10):
        one, two = a * np.uint64(ROUND_FACTORS[0]), c * np.uint64(ROUND_FACTORS[1])
        a, b, c, d = (
            (two >> np.uint64(32)) ^ b ^ keys[0],
            two & LOW_BITS,
            (one >> np.uint64(32)) ^ d ^ keys[1],
            one & LOW_BITS,
        )
        keys = [(key + np.uint64(add)) & LOW_BITS for key, add in zip(keys, KEY_STEPS, strict=True)]
    return [a, b, c, d]


def normals(x: UInt32s, y: UInt32s) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two normal numbers from each two 32-bit ones, as in cuRAND (Box and Muller 1958)."""
    scale = np.float32(2.3283064e-10)
    turn = np.float32(2.3283064e-10 * 6.2831855)
    u = x.astype(np.float64) * scale + scale / 2
    v = y.astype(np.float64) * turn + turn / 2
    radius = np.sqrt(-2 * np.log(u))
    return (radius * np.sin(v)).astype(np.float32), (radius * np.cos(v)).astype(np.float32)


class Philox:
    """torch.randn of an Nvidia card that runs `threads` threads, on any machine.

    Each thread yields four numbers a round, `threads` apart. For `threads` numbers or fewer, so on
    large cards and in A1111's source "NV", one of each thread is used.
    """

    def __init__(self, seed: int, threads: int = MAX_THREADS) -> None:
        self.seed, self.threads, self.round = seed, threads, 0

    def randn(self, shape: tuple[int, ...]) -> Tensor:
        """Draw the next standard normal numbers, float32."""
        count = math.prod(shape)
        index = np.arange(min(count, self.threads), dtype=np.uint64)
        zero, numbers = np.zeros_like(index), list[NDArray[np.float32]]()
        while sum(map(len, numbers)) < count:
            counter = [zero + np.uint64(self.round), zero, index, zero]
            a, b, c, d = philox(counter, self.seed)
            numbers += [*normals(a, b), *normals(c, d)]
            self.round += 1
        return torch.from_numpy(np.concatenate(numbers)[:count].reshape(shape))


def noise_source(name: str, seed: int, shape: Shape) -> Draw:
    """Generator of noise (C, h, w) from a seed: name is "cpu", "nv" or "nv:THREADS"."""
    kind, _, threads = name.partition(":")
    if kind == "nv":
        generator = Philox(seed, int(threads) if threads else MAX_THREADS)
        return lambda: generator.randn(shape)
    torch_generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=torch_generator)


def noise_stream(
    first: Draw, later: Draw, variation: Draw | None, strength: float
) -> Iterator[Tensor]:
    """One picture's noise: `first`, mixed with the subseed's `variation`, then `later` ones."""
    noise = first()
    yield slerp(strength, noise, variation()) if variation and strength else noise
    while True:
        yield later()


def slerp(share: float, a: Tensor, b: Tensor) -> Tensor:
    """Spherical interpolation from a (C, h, w) to b (Shoemake 1985), column by column as in A1111.

    Where both are nearly parallel it is linear, and from b to a, as in A1111's rng.py.
    """
    cosine = (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1)
    if cosine.mean() > 0.9995:
        return a * share + b * (1 - share)
    angle = torch.acos(cosine)
    parts = [torch.sin(part * angle) / torch.sin(angle) for part in (1 - share, share)]
    return parts[0].unsqueeze(1) * a + parts[1].unsqueeze(1) * b
