"""Token merging: tokens of a map that are alike attend to each other as one.

Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion": of each 2×2 cell the first token
stays, and those of the others that are most like one that stays are merged into it. As in Bolya et
al. 2022, §3.3, what is merged is attended to as often as there are tokens in it; on the default
model that halves the error. Nothing is drawn at random: each row of a batch is merged by itself.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

CELL = 2  # pixels a side: one of its tokens stays


@dataclass(frozen=True)
class Merged:
    """Fewer tokens in the place of all, and where each of all went."""

    tokens: Tensor  # (B, M, D)
    counts: Tensor  # (B, M), how many tokens each is the mean of
    places: Tensor  # (B, L), 0 … M-1

    def spread(self, out: Tensor) -> Tensor:
        """What came of merged tokens (B, M, D), given to all that each stands for: (B, L, D)."""
        return out.gather(1, self.places[..., None].expand(-1, -1, out.shape[-1]))


def merge(x: Tensor, height: int, width: int, ratio: float) -> Merged:
    """The tokens of a map, (B, height · width, D), fewer by a `ratio` of them, 3/4 at most."""
    stays, others = cells(height, width, x.device)
    unit = functional.normalize(x, dim=-1)
    alike, nearest = (unit[:, others] @ unit[:, stays].transpose(1, 2)).max(dim=-1)
    count = min(math.floor(x.shape[1] * ratio), len(others))
    order = alike.argsort(dim=-1, descending=True, stable=True)  # (B, others)
    going, alone = order[:, :count], order[:, count:]
    into = nearest.gather(1, going)  # (B, count), 0 … stays-1
    # A product with ones and zeros: scattered sums come out in any order on a card.
    target = torch.arange(len(stays), device=x.device)[:, None]
    chosen = (into[:, None] == target).to(x.dtype)  # (B, stays, count)
    counts = 1 + chosen.sum(dim=-1)  # (B, stays)
    means = (x[:, stays] + chosen @ picked(x[:, others], going)) / counts[..., None]
    tokens = torch.cat([means, picked(x[:, others], alone)], dim=1)
    counts = torch.cat([counts, counts.new_ones(alone.shape)], dim=1)
    places = torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
    places[:, stays] = target[:, 0]
    after = torch.arange(len(stays), tokens.shape[1], device=x.device).expand_as(alone)
    places[:, others] = torch.empty_like(order).scatter(1, going, into).scatter(1, alone, after)
    return Merged(tokens, counts, places)


def picked(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of x (B, L, D) at each row's own places (B, N): (B, N, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


@cache  # a recording reads them where they lie, so none may go
def cells(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which tokens of a map stay, and which do not: kept, since a card's recording makes none."""
    places = torch.arange(height * width).view(height, width)
    first = torch.zeros(height, width, dtype=torch.bool)
    first[::CELL, ::CELL] = True
    return places[first].to(device), places[~first].to(device)
