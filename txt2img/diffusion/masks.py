"""Inpainting with any model: a denoiser that keeps what is not masked.

In masks (B or 1, 1, h, w) 1 is repainted, 0 is kept.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import Level, Process

# What the network sees where the picture is kept: the kept latent at the level ("noised"), itself
# ("clean"), or whatever the sampler made of it ("free"); x0 there is the kept latent always.
Seen = Literal["noised", "clean", "free"]
MaskAt = Callable[[Level], Tensor]


def masked(
    denoise: Denoise,
    mask: MaskAt,
    kept: Tensor,
    noise: Tensor,
    seen: Seen = "noised",
    first: Level | None = None,
) -> Denoise:
    """A denoiser of x (B, C, h, w) whose x0 is `kept` where the mask of a level is 0.

    `noise` is the initial one. At the level `first` the network sees x as it is.
    """

    def at(x: Tensor, level: Level) -> Tensor:
        share = mask(level)
        if seen == "noised" and (first is None or level.ratio != first.ratio):
            x = share * x + (1 - share) * (level.alpha * kept + level.sigma * noise)
        elif seen == "clean":
            x = share * x + (1 - share) * kept
        return share * denoise(x, level) + (1 - share) * kept

    return at


def by_threshold(mask: Tensor, process: Process, start: Level) -> MaskAt:
    """A soft mask as hard ones, level by level: the whiter a cell, the sooner it is repainted.

    Levin and Fried 2023, "Differential Diffusion: Giving Each Pixel Its Strength". Black cells are
    never repainted.
    """
    top = process.time(start) or 1.0

    def at(level: Level) -> Tensor:
        threshold = process.time(level) / top
        return ((mask >= threshold) & (mask > 0)).to(mask.dtype)

    return at
