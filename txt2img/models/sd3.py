"""The transformer of Stable Diffusion 3 and 3.5: noisy latent, time, text → flow velocity.

Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis";
parameter names are diffusers' SD3Transformer2DModel's.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadRequest
from txt2img.models.configs import SD3Config
from txt2img.models.layers import Linear
from txt2img.models.transformer_layers import (
    AdaLayerNorm,
    GeluFeedForward,
    JointAttention,
    Modulation,
    SelfAttention,
    TimeTextEmbedding,
    add_branches,
    add_gated,
    clip_half,
    modulate,
    unpatchify,
)


class PatchEmbedding(nn.Module):
    """2×2 patches of a latent as tokens, with sines and cosines of their places added.

    The table of places is cut out from its centre, so that a picture's centre is always the same.
    """

    pos_embed: Tensor  # (1, side · side, D)

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.proj = nn.Conv2d(channels, width, 2, stride=2)
        self.register_buffer("pos_embed", torch.zeros(1, side * side, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) → (B, H/2 · W/2, D). Raises BadRequest for a picture beyond the table."""
        patches = self.proj(x)  # (B, D, h, w)
        height, width = patches.shape[-2:]
        if max(height, width) > self.side:
            raise BadRequest(
                f"this model draws at most {16 * self.side} pixels a side; "
                f"got {16 * width}x{16 * height}"
            )
        top, left = (self.side - height) // 2, (self.side - width) // 2
        table = self.pos_embed.unflatten(1, (self.side, self.side))
        places = table[:, top : top + height, left : left + width].flatten(1, 2)
        out: Tensor = patches.flatten(2).transpose(1, 2) + places
        return out


class JointBlock(nn.Module):
    """Joint attention of text and picture, then a feed-forward for each.

    SD 3.5 medium's first blocks have `dual` attention: the picture's on itself besides. In the last
    block the text is only read.
    """

    def __init__(self, config: SD3Config, index: int) -> None:
        super().__init__()
        width, heads = config.width, config.heads
        self.dual = index in config.dual_layers
        self.last = index == config.layers - 1
        self.norm1 = Modulation(width, 9 if self.dual else 6)
        self.norm1_context = AdaLayerNorm(width) if self.last else Modulation(width, 6)
        self.attn = JointAttention(width, heads, norm=config.qk_norm, read_only=self.last)
        self.attn2 = SelfAttention(width, heads, norm=config.qk_norm) if self.dual else None
        self.ff = GeluFeedForward(width)
        self.ff_context = None if self.last else GeluFeedForward(width)

    def forward(self, x: Tensor, text: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, L, D), text (B, M, D)."""
        mods, text_mods = self.norm1(embedding), ()
        if self.last:
            normed_text = self.norm1_context(text, embedding)
        else:
            text_mods = self.norm1_context(embedding)
            normed_text = modulate(text, *text_mods[:2])
        mixed, mixed_text = self.attn.joint(modulate(x, *mods[:2]), normed_text)
        mixed_2 = None if self.attn2 is None else self.attn2(modulate(x, *mods[6:8]))
        if mixed_2 is not None:
            x = add_gated(x, mods[8], mixed_2)
        x = add_branches(x, mods[:6], mixed, self.ff)
        if self.ff_context is not None and mixed_text is not None:
            text = clip_half(add_branches(text, text_mods, mixed_text, self.ff_context))
        return x, text


class SD3Transformer(nn.Module):
    """Latent x (B, C, H, W), time (B,), text and its pooled embedding → (B, C', H, W)."""

    broadcasts_latents = False

    def __init__(self, config: SD3Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pos_embed = PatchEmbedding(config.in_channels, width, config.positions)
        self.time_text_embed = TimeTextEmbedding(width, config.pooled)
        self.context_embedder = Linear(config.cross_dim, width)
        self.transformer_blocks = nn.ModuleList(
            JointBlock(config, index) for index in range(config.layers)
        )
        self.norm_out = AdaLayerNorm(width)
        self.proj_out = Linear(width, 4 * config.out_channels)

    def forward(self, x: Tensor, time: Tensor, cond: Cond, skip: Collection[int] = ()) -> Tensor:
        """x (B, C, H, W), time (B,) 0 to 1000, cond.tokens (B, M, T) → (B, C', H, W).

        Blocks in `skip` are left out.
        """
        height, width = x.shape[-2:]
        embedding = functional.silu(self.time_text_embed(time, cond, x.dtype))
        if cond.extra_channels is not None:
            x = torch.cat([x, cond.extra_channels], dim=1)
        h = self.pos_embed(x)
        text = self.context_embedder(cond.tokens.to(x.dtype))
        for index, block in enumerate(self.transformer_blocks):
            if index not in skip:
                h, text = block(h, text, embedding)
        tokens = self.proj_out(self.norm_out(h, embedding))
        return unpatchify(tokens, height, width, channels_last=True)


class SkipLayers(nn.Module):
    """A transformer without some of its blocks: the bad example of skip-layer guidance."""

    broadcasts_latents = False

    def __init__(self, network: SD3Transformer, layers: Collection[int]) -> None:
        super().__init__()
        self.network = network
        self.layers = frozenset(layers)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """x (B, C, H, W), time (B,), cond → (B, C', H, W)."""
        out: Tensor = self.network(x, time, cond, self.layers)
        return out
