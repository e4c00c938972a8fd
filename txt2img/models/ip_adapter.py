"""IP-Adapter: a picture's features → tokens → keys and values beside the text's.

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion
Models". Parameter names are those of the published files.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import ImagePrompt
from txt2img.models.control_configs import IPAdapterConfig
from txt2img.models.layers import Attention, Beside, Linear, attend, split_heads

LEVELS_MAX = 6  # of a U-Net


class PerceiverAttention(nn.Module):
    """Attention of latents (B, M, D) on a picture's features (B, L, D) and on themselves."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.to_q = Linear(width, inner, bias=False)
        self.to_k = Linear(width, inner, bias=False)
        self.to_v = Linear(width, inner, bias=False)
        self.to_out = Linear(inner, width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        both = torch.cat([self.norm1(x), latents], dim=1)
        parts = (self.to_q(latents), self.to_k(both), self.to_v(both))
        q, k, v = (split_heads(part, self.heads) for part in parts)
        out: Tensor = self.to_out(attend(q, k, v, None))
        return out


class Resampler(nn.Module):
    """IP-Adapter Plus: learnt queries read all of a picture's patches: (B, L, E) → (B, M, C).

    Alayrac et al. 2022, "Flamingo: a Visual Language Model for Few-Shot Learning", §2.1.
    """

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width = config.width
        self.latents = nn.Parameter(torch.empty(1, config.tokens, width))
        self.proj_in = Linear(config.features, width)
        self.proj_out = Linear(width, config.cross_dim)
        self.norm_out = nn.LayerNorm(config.cross_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, config.heads, config.head_width),
                    nn.Sequential(
                        nn.LayerNorm(width),
                        Linear(width, config.mlp, bias=False),
                        nn.GELU(),
                        Linear(config.mlp, width, bias=False),
                    ),
                ]
            )
            for _ in range(config.depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        x = self.proj_in(features)
        latents = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = attention(x, latents) + latents
            latents = feed_forward(latents) + latents
        out: Tensor = self.norm_out(self.proj_out(latents))
        return out


class ImageProjection(nn.Module):
    """The first IP-Adapter: a picture's one embedding (B, E) → a few tokens (B, M, C)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = Linear(config.features, config.tokens * config.cross_dim)
        self.norm = nn.LayerNorm(config.cross_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(embedding).unflatten(-1, (self.tokens, -1)))
        return out


class FullProjection(nn.Module):
    """IP-Adapter Full: every patch of a picture becomes a token: (B, L, E) → (B, L, C)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            Linear(config.features, config.features),
            nn.GELU(),
            Linear(config.features, config.cross_dim),
            nn.LayerNorm(config.cross_dim),
        )

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.proj(features)
        return out


PROJECTIONS = {"base": ImageProjection, "plus": Resampler, "full": FullProjection}


class KeysValues(nn.Module):
    """The keys and values of a picture's tokens for one cross-attention."""

    def __init__(self, cross_dim: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = Linear(cross_dim, width, bias=False)
        self.to_v_ip = Linear(cross_dim, width, bias=False)


class IPAdapter(nn.Module):
    """An IP-Adapter's projection, and the keys and values for each of a U-Net's cross-attentions.

    The files number all attentions, self and cross in turn, down, up and then the middle: the order
    in which diffusers registers them. Cross-attentions have the odd numbers.
    """

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = PROJECTIONS[config.kind](config)
        self.ip_adapter = nn.ModuleDict(
            {str(2 * i + 1): KeysValues(config.cross_dim, w) for i, w in enumerate(config.widths)}
        )

    def forward(self, features: Tensor) -> Tensor:
        """Tokens (B, M, C) of pictures' features."""
        tokens: Tensor = self.image_proj(features)
        return tokens

    def pairs(self, tokens: Tensor, heads: list[int], weight: float) -> Tensor:
        """Keys and weighted values of tokens (B, M, C) for all cross-attentions, flat: (B, N).

        Of each cross-attention they are (2, heads, M, d). That the weight scales the values has the
        effect of scaling what the attention gives.
        """
        flat = []
        for layer, count in zip(self.ip_adapter.values(), heads, strict=True):
            assert isinstance(layer, KeysValues)
            k, v = layer.to_k_ip(tokens), weight * layer.to_v_ip(tokens)
            flat += [split_heads(part, count).flatten(1) for part in (k, v)]
        return torch.cat(flat, dim=1)


def set_beside(
    attentions: Sequence[Attention], prompts: Sequence[ImagePrompt], size: tuple[int, int]
) -> None:
    """Let cross-attentions see image prompts beside the text, at a latent of `size`.

    Without prompts they see the text alone again.
    """
    numbers = 2 * sum(attention.to_q.in_features for attention in attentions)
    for attention in attentions:
        attention.beside = []
    for prompt in prompts:
        tokens = prompt.pairs.shape[1] // numbers
        halves = [n for a in attentions for n in [tokens * a.to_q.in_features] * 2]
        parts = iter(prompt.pairs.split(halves, dim=1))
        masks = None if prompt.mask is None else masks_by_length(prompt.mask, size)
        for attention in attentions:
            k, v = (next(parts).unflatten(1, (attention.heads, tokens, -1)) for _ in "kv")
            attention.beside = [*attention.beside, Beside(k, v, masks)]


def level_masks(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask of pixels (B, 1, H, W) at the size of each map of a U-Net, one after another: (B, P).

    `size` is the latent's. Bicubic without a low pass, as in diffusers
    (IPAdapterMaskProcessor.downsample).
    """
    maps = [functional.interpolate(mask, one, mode="bicubic") for one in map_sizes(size)]
    return torch.cat([one.flatten(1) for one in maps], dim=1)


def masks_by_length(masks: Tensor, size: tuple[int, int]) -> dict[int, Tensor]:
    """The masks (B, L, 1) of `level_masks` by L, the number of a map's cells."""
    lengths = [height * width for height, width in map_sizes(size)]
    parts = masks.split(lengths, dim=1)
    return {length: part[..., None] for length, part in zip(lengths, parts, strict=True)}


def map_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes of a U-Net's maps, each half the one before, rounded up."""
    sizes = [size]
    while len(sizes) < LEVELS_MAX:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes
