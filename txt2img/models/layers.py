"""Layers that the networks share: residual blocks, attention, time features, resampling."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Optimized = Callable[..., Tensor]  # layer and its inputs → its output


class Linear(nn.Linear):
    """nn.Linear, unless an optimisation computes it in its own way (see optimize/)."""

    optimized: Optimized | None = None
    version = 0  # of the weights: see weights_changed
    packed_shape: tuple[int, ...] | None = None  # of a weight in blocks: see optimize/packed.py

    def forward(self, x: Tensor) -> Tensor:
        return (self.optimized or nn.Linear.forward)(self, x)


class Conv2d(nn.Conv2d):
    """nn.Conv2d, unless an optimisation computes it in its own way (see optimize/)."""

    optimized: Optimized | None = None
    version = 0
    packed_shape: tuple[int, ...] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return (self.optimized or nn.Conv2d.forward)(self, x)


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether a convolution is a matrix product over channels, pixel by pixel."""
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1


def weights_changed(layer: nn.Module) -> None:
    """Tell optimisations that a layer's weights were changed in place, so that caches are stale."""
    if isinstance(layer, Linear | Conv2d):
        layer.version += 1


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, counts: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of q (B, L, D) on k, v (B, M, D), by heads: (B, L, D).

    `counts` (B, M) says how many tokens each of k, v stands for: exp(log n + qk) is n · exp(qk).
    """
    return attend(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), counts)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """x (B, L, D) → (B, heads, L, d)."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def attend(q: Tensor, k: Tensor, v: Tensor, counts: Tensor | None) -> Tensor:
    """Attention of q (B, heads, L, d) on k, v (B, heads, M, d), with heads merged: (B, L, D)."""
    bias = None if counts is None else counts.log()[:, None, None]
    mixed = functional.scaled_dot_product_attention(q, k, v, bias)
    out: Tensor = mixed.transpose(1, 2).flatten(-2)
    return out


@dataclass(frozen=True)
class Beside:
    """Keys and values that a cross-attention's queries attend to beside the text's."""

    k: Tensor  # (B, heads, M, d)
    v: Tensor
    masks: Mapping[int, Tensor] | None = None  # by the number of queries L, (B, L, 1)

    def attend(self, q: Tensor) -> Tensor:
        """What is added for queries (B, heads, L, d): (B, L, D)."""
        mixed = attend(q, self.k, self.v, None)
        return mixed if self.masks is None else mixed * self.masks[q.shape[2]]


def repeat_to_batch(x: Tensor, other: Tensor) -> Tensor:
    """Repeat x (B, …) to the batch size of `other`, N·B: (N·B, …)."""
    times = len(other) // len(x)
    return x if times == 1 else torch.cat([x] * times)  # unlike repeat, keeps the memory format


def swish(x: Tensor) -> Tensor:
    """x · sigmoid(x), in place unless gradients are enabled: x must not be needed any more."""
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def time_features(time: Tensor, width: int) -> Tensor:
    """Cosines and sines of time (B,) at geometric frequencies 1 … 1/10000: (B, width), float32.

    Vaswani et al. 2017, §3.5, in the order cosine, sine.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=time.device)
    angles = time.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def scale_features(scale: Tensor, width: int) -> Tensor:
    """Sines and cosines of a guidance scale less 1, (B,): (B, width), float32.

    Luo et al. 2023 (LCM), §4.3: a time embedding of 1000 times the scale.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=scale.device)
    angles = 1000.0 * scale.float()[:, None] * torch.exp(-math.log(10000.0) / (half - 1) * steps)
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width % 2))


class TimeEmbedding(nn.Module):
    """Time features (B, width) → the time embedding (B, out) that residual blocks add.

    A guidance scale's `cond_width` features, in an LCM, are added to the time's.
    """

    def __init__(self, width: int, out: int, cond_width: int = 0) -> None:
        super().__init__()
        self.cond_proj = Linear(cond_width, width, bias=False) if cond_width else None
        self.linear_1 = Linear(width, out)
        self.linear_2 = Linear(out, out)

    def forward(self, features: Tensor, cond: Tensor | None = None) -> Tensor:
        if self.cond_proj is not None and cond is not None:
            features = features + self.cond_proj(cond)
        out: Tensor = self.linear_2(functional.silu(self.linear_1(features)))
        return out


class ResnetBlock(nn.Module):
    """Two 3×3 convolutions with a residual connection; a time embedding is added between them."""

    def __init__(
        self, channels: int, out: int, groups: int, eps: float, time_width: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=eps)
        self.conv1 = Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = Linear(time_width, out) if time_width is not None else None
        self.norm2 = nn.GroupNorm(groups, out, eps=eps)
        self.conv2 = Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        if self.time_emb_proj is not None and time is not None:
            shift = self.time_emb_proj(functional.silu(time))  # (B, out)
            h = h + repeat_to_batch(shift, h)[:, :, None, None]
        h = self.conv2(swish(self.norm2(h)))
        # Computed last, so that it takes no memory before.
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        out: Tensor = shortcut + h
        return out


class Attention(nn.Module):
    """Self-attention of x (B, L, D), or cross-attention on a context (B, M, C): (B, L, D)."""

    optimized: Optimized | None = None
    beside: Sequence[Beside] = ()  # during a pass with pictures as prompts

    def __init__(self, width: int, context: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, width, bias=bias)
        self.to_k = Linear(context, width, bias=bias)
        self.to_v = Linear(context, width, bias=bias)
        self.to_out = nn.ModuleList([Linear(width, width)])

    def forward(
        self, x: Tensor, context: Tensor | None = None, counts: Tensor | None = None
    ) -> Tensor:
        return (self.optimized or Attention.plain)(self, x, context, counts)

    def plain(self, x: Tensor, context: Tensor | None, counts: Tensor | None) -> Tensor:
        """Attention without optimisations."""
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        mixed = attention(q, k, v, self.heads, counts)
        if self.beside:
            mixed = self.with_beside(mixed, split_heads(q, self.heads))
        out: Tensor = self.to_out[0](mixed)
        return out

    def with_beside(self, mixed: Tensor, q: Tensor) -> Tensor:
        """What was mixed (B, L, D) and what queries (B, heads, L, d) find beside the context."""
        for beside in self.beside:
            mixed = mixed + beside.attend(q)
        return mixed


class GatedLinear(nn.Module):
    """GEGLU (Shazeer 2020): half of a projection, times the GELU of the other half."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * functional.gelu(gate)
        return out


class FeedForward(nn.Module):
    """Feed-forward half of a transformer block: (B, L, D) → (B, L, D)."""

    optimized: Optimized | None = None

    def __init__(self, width: int) -> None:
        super().__init__()
        # Index 1 is dropout in the published layout; it has no weights.
        self.net = nn.ModuleList(
            [GatedLinear(width, 4 * width), nn.Identity(), Linear(4 * width, width)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.optimized or FeedForward.plain)(self, x)

    def plain(self, x: Tensor) -> Tensor:
        """The feed-forward without optimisations."""
        for layer in self.net:
            x = layer(x)
        return x


class Downsample(nn.Module):
    """Halve height and width by a convolution of stride 2.

    The VAE pads only below and on the right (`asymmetric_pad`), as its published weights expect.
    """

    def __init__(self, channels: int, asymmetric_pad: bool = False) -> None:
        super().__init__()
        self.asymmetric_pad = asymmetric_pad
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric_pad else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.asymmetric_pad:
            x = functional.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """Upsample by nearest neighbours, to twice the size or to `size`, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        height, width = x.shape[-2:]
        out: Tensor = self.conv(
            functional.interpolate(x, size=size or (2 * height, 2 * width), mode="nearest")
        )
        return out
