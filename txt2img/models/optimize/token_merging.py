"""Token merging (ToMe): similar tokens of a map are merged for self-attention.

Bolya and Hoffman 2023, "Token Merging for Fast Stable Diffusion": of each 2×2 cell the first token
is a destination (dst); those of the others (src) that are most similar to one are merged into it.
As in Bolya et al. 2022, §3.3, attention counts a merged token once for each that it stands for; on
the default model that halves the error. Nothing is random, and each row of a batch is independent.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

CELL = 2  # pixels a side: one of its tokens is a destination


@dataclass(frozen=True)
class MergedTokens:
    """Merged tokens, and which of them stands for each token of the map."""

    tokens: Tensor  # (B, M, D)
    counts: Tensor  # (B, M), how many tokens each is the mean of
    positions: Tensor  # (B, L), 0 … M-1

    def unmerge(self, out: Tensor) -> Tensor:
        """Copy an output of merged tokens (B, M, D) to all that each stands for: (B, L, D)."""
        return out.gather(1, self.positions[..., None].expand(-1, -1, out.shape[-1]))


def merge(x: Tensor, height: int, width: int, ratio: float) -> MergedTokens:
    """Merge a share `ratio`, 3/4 at most, of a map's tokens x (B, height · width, D)."""
    dst, src = split_cells(height, width, x.device)
    unit = functional.normalize(x, dim=-1)
    similarity, nearest = (unit[:, src] @ unit[:, dst].transpose(1, 2)).max(dim=-1)
    count = min(math.floor(x.shape[1] * ratio), len(src))
    order = similarity.argsort(dim=-1, descending=True, stable=True)  # (B, src)
    merged, unmerged = order[:, :count], order[:, count:]
    target = nearest.gather(1, merged)  # (B, count), 0 … dst-1
    # A product with ones and zeros: scattered sums come out in any order on a card.
    index = torch.arange(len(dst), device=x.device)[:, None]
    assigned = (target[:, None] == index).to(x.dtype)  # (B, dst, count)
    counts = 1 + assigned.sum(dim=-1)  # (B, dst)
    means = (x[:, dst] + assigned @ gather_tokens(x[:, src], merged)) / counts[..., None]
    tokens = torch.cat([means, gather_tokens(x[:, src], unmerged)], dim=1)
    counts = torch.cat([counts, counts.new_ones(unmerged.shape)], dim=1)
    positions = torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
    positions[:, dst] = index[:, 0]
    after = torch.arange(len(dst), tokens.shape[1], device=x.device).expand_as(unmerged)
    positions[:, src] = (
        torch.empty_like(order).scatter(1, merged, target).scatter(1, unmerged, after)
    )
    return MergedTokens(tokens, counts, positions)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of x (B, L, D) at each row's own indices (B, N): (B, N, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


@cache  # unbounded: a CUDA graph reads them where they lie
def split_cells(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of a map's dst and src tokens."""
    index = torch.arange(height * width).view(height, width)
    first = torch.zeros(height, width, dtype=torch.bool)
    first[::CELL, ::CELL] = True
    return index[first].to(device), index[~first].to(device)
