"""Layers that diffusion transformers share: rotary embedding, joint attention, modulation, patches.

Parameter names are diffusers', so that its folders need no key map.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.layers import Linear, time_features

TIME_FEATURES = 256
HALF_MAX = 65504.0  # the largest number in float16


class Grid(NamedTuple):
    """Positions of tokens on n axes: a grid of `size` from `start`, last axis fastest."""

    start: tuple[int, ...]
    size: tuple[int, ...]
    repeat: int = 1  # tokens at each position


def rotations(
    grids: Sequence[Grid],
    axes: tuple[int, ...],
    theta: float,
    device: torch.device,
    single: bool = False,
) -> Tensor:
    """Rotary position embedding (Su et al. 2021) on several axes: (L, 1, d / 2), complex.

    Axis i turns axes[i] of a head's d features. Angles are float64, or rounded to float32 where
    a model was trained so (`single`).
    """
    rows = []
    for grid in grids:
        parts = []
        for axis, (first, count, width) in enumerate(zip(grid.start, grid.size, axes, strict=True)):
            length = 1 << (first + count - 1).bit_length()
            table = axis_rotations(length, width, theta, device, single)[first : first + count]
            shape = [count if other == axis else 1 for other in range(len(axes))]
            parts.append(table.view(*shape, -1).expand(*grid.size, -1))
        rows.append(torch.cat(parts, dim=-1).flatten(0, -2).repeat_interleave(grid.repeat, dim=0))
    return torch.cat(rows)[:, None]


@cache  # never dropped, as recorded CUDA graphs read it; lengths are powers of 2, so there are few
@torch.inference_mode(False)
def axis_rotations(
    length: int, width: int, theta: float, device: torch.device, single: bool
) -> Tensor:
    """Rotations of positions 0 to length - 1 on one axis: (length, width / 2), complex."""
    angles = np.outer(np.arange(length), theta ** -(np.arange(0, width, 2) / width))
    angles = angles.astype(np.float32 if single else np.float64)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)
    return torch.view_as_complex(torch.from_numpy(table)).to(device)


def rotate(x: Tensor, by: Tensor) -> Tensor:
    """Turn each pair of neighbouring features of x (B, L, heads, d), in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * by).flatten(-2).to(x.dtype)


def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q on k, v, each (B, L, heads, d), with heads merged: (B, L, heads · d)."""
    mixed = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    )
    out: Tensor = mixed.transpose(1, 2).flatten(2)
    return out


class SelfAttention(nn.Module):
    """Self-attention with RMSNorm on queries and keys; `out` projects what was mixed."""

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool = True,
        eps: float = 1e-6,
        norm: bool = True,
        out: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=bias)
        self.to_k = Linear(width, width, bias=bias)
        self.to_v = Linear(width, width, bias=bias)
        self.norm_q = head_norm(width // heads, eps, norm)
        self.norm_k = head_norm(width // heads, eps, norm)
        self.to_out = nn.ModuleList([Linear(width, width, bias=bias)] if out else [])

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, both normalised, and values: each (B, L, heads, d)."""
        q, k, v = (to_heads(layer(x), self.heads) for layer in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def forward(self, x: Tensor, turned: Tensor | None = None) -> Tensor:
        """x (B, L, D) → (B, L, D), with queries and keys `turned` by rotations."""
        q, k, v = self.heads_of(x)
        if turned is not None:
            q, k = rotate(q, turned), rotate(k, turned)
        x = mix(q, k, v)
        for layer in self.to_out:
            x = layer(x)
        return x


class JointAttention(SelfAttention):
    """Attention among the tokens of text and picture, which have weights of their own.

    Esser et al. 2024, "Scaling Rectified Flow Transformers". The last block's text is `read_only`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool = True,
        norm: bool = True,
        read_only: bool = False,
    ) -> None:
        super().__init__(width, heads, bias, norm=norm)
        self.add_q_proj = Linear(width, width, bias=bias)
        self.add_k_proj = Linear(width, width, bias=bias)
        self.add_v_proj = Linear(width, width, bias=bias)
        self.norm_added_q = head_norm(width // heads, 1e-6, norm)
        self.norm_added_k = head_norm(width // heads, 1e-6, norm)
        self.to_add_out = None if read_only else Linear(width, width, bias=bias)

    def joint(
        self, x: Tensor, text: Tensor, turned: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Both streams, x (B, L, D) and text (B, M, D); `turned` has the text's tokens first."""
        layers = self.add_q_proj, self.add_k_proj, self.add_v_proj
        text_q, text_k, text_v = (to_heads(layer(text), self.heads) for layer in layers)
        q, k, v = self.heads_of(x)
        q = torch.cat([self.norm_added_q(text_q), q], dim=1)
        k = torch.cat([self.norm_added_k(text_k), k], dim=1)
        if turned is not None:
            q, k = rotate(q, turned), rotate(k, turned)
        mixed = mix(q, k, torch.cat([text_v, v], dim=1))
        length = text.shape[1]
        out = self.to_out[0](mixed[:, length:])
        return out, None if self.to_add_out is None else self.to_add_out(mixed[:, :length])


def to_heads(x: Tensor, heads: int) -> Tensor:
    """x (B, L, D) → (B, L, heads, d)."""
    parts: Tensor = x.unflatten(-1, (heads, -1))
    return parts


def head_norm(width: int, eps: float, norm: bool = True) -> nn.Module:
    """The RMSNorm (Zhang and Sennrich 2019) of queries or keys, or none."""
    return nn.RMSNorm(width, eps=eps) if norm else nn.Identity()


class Modulation(nn.Module):
    """Shifts, scales and gates from an embedding that went through SiLU: `count` of (B, 1, D).

    Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", adaLN-Zero.
    """

    def __init__(self, width: int, count: int, bias: bool = True) -> None:
        super().__init__()
        self.count = count
        self.linear = Linear(width, count * width, bias=bias)

    def forward(self, embedding: Tensor) -> tuple[Tensor, ...]:
        out: Tensor = self.linear(embedding)
        return out[:, None].chunk(self.count, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm of x (B, L, D), times 1 + scale, plus shift, each (B, 1, D)."""
    shape, eps = x.shape[-1:], 1e-6
    if len(shift) == 1:  # in one pass
        return functional.layer_norm(x, shape, 1 + scale[0, 0], shift[0, 0], eps)
    return torch.addcmul(shift, functional.layer_norm(x, shape, eps=eps), 1 + scale)


def add_gated(x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
    """x + gate · out, in place unless gradients are enabled: x must not be needed any more."""
    if torch.is_grad_enabled():
        return torch.addcmul(x, gate, out)
    return x.addcmul_(gate, out)


def add_branches(
    x: Tensor, mods: tuple[Tensor, ...], mixed: Tensor, feed_forward: nn.Module
) -> Tensor:
    """x with the outputs of attention, and then of a feed-forward, added through their gates.

    `mods` are shift, scale and gate of attention, and of the feed-forward.
    """
    _, _, gate, ff_shift, ff_scale, ff_gate = mods
    x = add_gated(x, gate, mixed)
    return add_gated(x, ff_gate, feed_forward(modulate(x, ff_shift, ff_scale)))


def clip_half(x: Tensor) -> Tensor:
    """x without the infinities that a sum may reach in float16."""
    return x.clip(-HALF_MAX, HALF_MAX) if x.dtype == torch.float16 else x


class GeluFeedForward(nn.Module):
    """Feed-forward half of a block with the tanh form of GELU: (B, L, D) → (B, L, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Indices and `proj` are those of the published layout, whose index 1 has no weights.
        first = nn.ModuleDict({"proj": Linear(width, 4 * width)})
        self.net = nn.ModuleList([first, nn.Identity(), Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        first, _, last = self.net
        assert isinstance(first, nn.ModuleDict)
        out: Tensor = last(functional.gelu(first["proj"](x), approximate="tanh"))
        return out


class Embedding(nn.Module):
    """Two linear layers with SiLU between them: (B, P) → (B, D)."""

    def __init__(self, features: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = Linear(features, width, bias=bias)
        self.linear_2 = Linear(width, width, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear_2(functional.silu(self.linear_1(features)))
        return out


class TimeTextEmbedding(nn.Module):
    """Embedding (B, D) of time, guidance scale and pooled text, the latter two if there are any."""

    def __init__(
        self, width: int, pooled: int = 0, guidance: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.timestep_embedder = Embedding(TIME_FEATURES, width, bias)
        self.guidance_embedder = Embedding(TIME_FEATURES, width, bias) if guidance else None
        self.text_embedder = Embedding(pooled, width, bias) if pooled else None

    def forward(self, time: Tensor, cond: Cond, dtype: torch.dtype) -> Tensor:
        """`time` is 0 to 1000; features of it and of the guidance scale are made in float32."""
        out: Tensor = self.timestep_embedder(time_features(time, TIME_FEATURES).to(dtype))
        if self.guidance_embedder is not None:
            assert cond.guidance is not None
            features = time_features(1000 * cond.guidance.float(), TIME_FEATURES)
            out = out + self.guidance_embedder(features.to(dtype))
        if self.text_embedder is not None:
            assert cond.pooled is not None
            out = out + self.text_embedder(cond.pooled.to(dtype))
        return out


class AdaLayerNorm(nn.Module):
    """Modulated norm before the last projection; scale and shift in diffusers' order."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = Linear(width, 2 * width, bias=bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.linear(embedding)[:, None].chunk(2, dim=-1)
        return modulate(x, shift, scale)


def patchify(x: Tensor, channels_last: bool = False) -> Tensor:
    """2×2 patches of x (B, C, H, W) as tokens (B, H/2 · W/2, 4C), row by row.

    A token's features are in the order channel, row, column, or with channels last.
    """
    patches = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, h, 2, w, 2)
    order = (0, 2, 4, 3, 5, 1) if channels_last else (0, 2, 4, 1, 3, 5)
    tokens: Tensor = patches.permute(order).flatten(3).flatten(1, 2)
    return tokens


def unpatchify(tokens: Tensor, height: int, width: int, channels_last: bool = False) -> Tensor:
    """Tokens (B, H/2 · W/2, 4C) back to (B, C, H, W): the inverse of patchify."""
    sides = (2, 2, -1) if channels_last else (-1, 2, 2)
    patches = tokens.unflatten(2, sides).unflatten(1, (height // 2, width // 2))
    order = (0, 5, 1, 3, 2, 4) if channels_last else (0, 3, 1, 4, 2, 5)
    x: Tensor = patches.permute(order).flatten(4).flatten(2, 3)
    return x
