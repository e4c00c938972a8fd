"""Closed forms for tests: exact denoisers of Gaussian mixtures, and where their ODE ends."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from txt2img.diffusion.levels import Level


def mixture(centres: Tensor, spread: float) -> Callable[[Tensor, Level], Tensor]:
    """The exact x0 for pictures that are one of centres (K, C, H, W), give or take `spread`."""

    def denoise(x: Tensor, level: Level) -> Tensor:
        """E[x0 | x], (B, C, H, W)."""
        alpha, variance = level.alpha, level.alpha**2 * spread**2 + level.sigma**2
        away = x[:, None] - alpha * centres  # (B, K, C, H, W)
        weights = (-away.square().sum((2, 3, 4)) / (2 * variance)).softmax(1)
        means = centres + alpha * spread**2 / variance * away
        return torch.einsum("bk,bkchw->bchw", weights, means)

    return denoise


def pictures(dtype: torch.dtype = torch.float32, count: int = 5, size: int = 4) -> Tensor:
    """`count` centres (K, 4, size, size), always the same."""
    made = torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(7))
    return made.to(dtype)


def network(
    denoise: Callable[[Tensor, Level], Tensor], kind: str
) -> Callable[[Tensor, Level], Tensor]:
    """What a perfect network that predicts eps, v or flow gives for x at a level."""

    def out(x: Tensor, level: Level) -> Tensor:
        """The output, (B, C, H, W)."""
        x0 = denoise(x, level)
        noise = (x - level.alpha * x0) / level.sigma
        if kind == "eps":
            return noise
        return level.alpha * noise - level.sigma * x0 if kind == "v" else noise - x0

    return out


def exact_end(x: Tensor, centres: Tensor, spread: float, a: Level, b: Level) -> Tensor:
    """Where the probability-flow ODE takes numbers x (N, 1, 1, 1) from level a to b, float64.

    In one dimension it keeps every number's quantile, which bisection then finds at b.
    """

    def quantile(at: Tensor, level: Level) -> Tensor:
        std = math.sqrt(level.alpha**2 * spread**2 + level.sigma**2)
        return torch.special.ndtr((at - level.alpha * centres.flatten()) / std).mean(-1)

    wanted = quantile(x.reshape(-1, 1), a)
    low, high = torch.full_like(wanted, -10), torch.full_like(wanted, 10)
    for _ in range(60):
        middle = (low + high) / 2
        below = quantile(middle[:, None], b) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low.reshape(x.shape)
