"""The transformer of FLUX.1: noisy latent, time, text → rectified-flow velocity.

Double blocks have weights of their own for text and picture, single blocks the same for both.
Black Forest Labs 2024; parameter names are diffusers' FluxTransformer2DModel's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import FluxConfig
from txt2img.models.layers import Linear
from txt2img.models.transformer_layers import (
    AdaLayerNorm,
    GeluFeedForward,
    Grid,
    JointAttention,
    Modulation,
    SelfAttention,
    TimeTextEmbedding,
    add_branches,
    add_gated,
    clip_half,
    modulate,
    patchify,
    rotations,
    unpatchify,
)


class FluxDoubleBlock(nn.Module):
    """Joint attention of text and picture, then a feed-forward for each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = Modulation(width, 6)
        self.norm1_context = Modulation(width, 6)
        self.attn = JointAttention(width, heads)
        self.ff = GeluFeedForward(width)
        self.ff_context = GeluFeedForward(width)

    def forward(
        self, x: Tensor, text: Tensor, embedding: Tensor, turned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x (B, L, D), text (B, M, D), with rotations of M + L tokens."""
        mods, text_mods = self.norm1(embedding), self.norm1_context(embedding)
        normed, normed_text = modulate(x, *mods[:2]), modulate(text, *text_mods[:2])
        mixed, mixed_text = self.attn.joint(normed, normed_text, turned)
        assert mixed_text is not None
        text = add_branches(text, text_mods, mixed_text, self.ff_context)
        return add_branches(x, mods, mixed, self.ff), clip_half(text)


class FluxSingleBlock(nn.Module):
    """Attention and feed-forward side by side, on text and picture as one sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = Modulation(width, 3)
        self.attn = SelfAttention(width, heads, out=False)
        self.proj_mlp = Linear(width, 4 * width)
        self.proj_out = Linear(5 * width, width)

    def forward(self, x: Tensor, embedding: Tensor, turned: Tensor) -> Tensor:
        """x (B, M + L, D)."""
        shift, scale, gate = self.norm(embedding)
        normed = modulate(x, shift, scale)
        mixed = self.attn(normed, turned)
        inner = functional.gelu(self.proj_mlp(normed), approximate="tanh")
        return clip_half(add_gated(x, gate, self.proj_out(torch.cat([mixed, inner], dim=2))))


class FluxTransformer(nn.Module):
    """Latent x (B, C, H, W), time (B,), text and its pooled embedding → (B, C', H, W).

    Tokens of reference pictures (Kontext) follow the latent's, at 1 on the first axis.
    """

    broadcasts_latents = False

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.time_text_embed = TimeTextEmbedding(width, config.pooled, config.embeds_guidance)
        self.context_embedder = Linear(config.cross_dim, width)
        self.x_embedder = Linear(4 * config.in_channels, width)
        self.transformer_blocks = nn.ModuleList(
            FluxDoubleBlock(width, heads) for _ in range(config.double_blocks)
        )
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleBlock(width, heads) for _ in range(config.single_blocks)
        )
        self.norm_out = AdaLayerNorm(width)
        self.proj_out = Linear(width, 4 * config.out_channels)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """x (B, C, H, W), time (B,) 0 to 1000, cond.tokens (B, M, T) → (B, C', H, W)."""
        pictures = [x if cond.extra_channels is None else torch.cat([x, cond.extra_channels], 1)]
        pictures += cond.references
        embedding = functional.silu(self.time_text_embed(time, cond, x.dtype))
        h = self.x_embedder(torch.cat(list(map(patchify, pictures)), dim=1))  # (B, L, D)
        text = self.context_embedder(cond.tokens.to(x.dtype))  # (B, M, D)
        turned = self.rotations(text.shape[1], pictures)
        for block in self.transformer_blocks:
            h, text = block(h, text, embedding, turned)
        h = torch.cat([text, h], dim=1)
        for block in self.single_transformer_blocks:
            h = block(h, embedding, turned)
        height, width = x.shape[-2:]
        h = h[:, text.shape[1] :][:, : height * width // 4]
        return unpatchify(self.proj_out(self.norm_out(h, embedding)), height, width)

    def rotations(self, text: int, pictures: list[Tensor]) -> Tensor:
        """Rotations of `text` tokens, all at 0, and of the latent's and the references' patches."""
        grids = [Grid((0, 0, 0), (1, 1, 1), text)]
        for index, picture in enumerate(pictures):
            height, width = picture.shape[-2:]
            grids.append(Grid((min(index, 1), 0, 0), (1, height // 2, width // 2)))
        device = pictures[0].device
        return rotations(grids, self.config.axes, self.config.theta, device)
