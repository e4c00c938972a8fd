"""The transformer of FLUX.2: noisy latent, time, text → rectified-flow velocity.

As FLUX.1's, but all blocks of a kind share their modulation, no layer has a bias, and feed-forwards
are gated. Black Forest Labs 2025; parameter names are diffusers' Flux2Transformer2DModel's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import Flux2Config
from txt2img.models.layers import Linear
from txt2img.models.transformer_layers import (
    AdaLayerNorm,
    Grid,
    JointAttention,
    Modulation,
    TimeTextEmbedding,
    add_branches,
    add_gated,
    clip_half,
    head_norm,
    mix,
    modulate,
    rotate,
    rotations,
    to_heads,
)

REFERENCE_STEP = 10  # on the first axis, from one reference picture to the next


def swiglu(x: Tensor) -> Tensor:
    """Second half of x (B, L, 2D), times the SiLU of the first (Shazeer 2020): (B, L, D)."""
    gate, value = x.chunk(2, dim=-1)
    return functional.silu(gate) * value


class Flux2FeedForward(nn.Module):
    """SwiGLU with both projections in one layer, projected back: (B, L, D) → (B, L, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_in = Linear(width, 6 * width, bias=False)
        self.linear_out = Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_out(swiglu(self.linear_in(x)))
        return out


class Flux2DoubleBlock(nn.Module):
    """Joint attention of text and picture, then a feed-forward for each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = JointAttention(width, heads, bias=False)
        self.ff = Flux2FeedForward(width)
        self.ff_context = Flux2FeedForward(width)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        mods: tuple[Tensor, ...],
        text_mods: tuple[Tensor, ...],
        turned: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """x (B, L, D), text (B, M, D), with rotations of M + L tokens."""
        normed, normed_text = modulate(x, *mods[:2]), modulate(text, *text_mods[:2])
        mixed, mixed_text = self.attn.joint(normed, normed_text, turned)
        assert mixed_text is not None
        text = add_branches(text, text_mods, mixed_text, self.ff_context)
        return add_branches(x, mods, mixed, self.ff), clip_half(text)


class ParallelAttention(nn.Module):
    """Self-attention and a gated feed-forward side by side, in one layer in and one out.

    Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters".
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv_mlp_proj = Linear(width, 9 * width, bias=False)
        self.norm_q = head_norm(width // heads, 1e-6)
        self.norm_k = head_norm(width // heads, 1e-6)
        self.to_out = Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        """x (B, L, D), with rotations of L tokens."""
        width = x.shape[-1]
        parts = self.to_qkv_mlp_proj(x).split([width] * 3 + [6 * width], dim=-1)
        q, k, v = (to_heads(part, self.heads) for part in parts[:3])
        mixed = mix(rotate(self.norm_q(q), turned), rotate(self.norm_k(k), turned), v)
        out: Tensor = self.to_out(torch.cat([mixed, swiglu(parts[3])], dim=-1))
        return out


class Flux2SingleBlock(nn.Module):
    """Parallel attention on text and picture as one sequence, with modulation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = ParallelAttention(width, heads)

    def forward(self, x: Tensor, mods: tuple[Tensor, ...], turned: Tensor) -> Tensor:
        """x (B, M + L, D)."""
        shift, scale, gate = mods
        return clip_half(add_gated(x, gate, self.attn(modulate(x, shift, scale), turned)))


class Flux2Transformer(nn.Module):
    """Latent x (B, C, H, W), already of 2×2 patches, time (B,), text → (B, C, H, W).

    Tokens of reference pictures follow the latent's, at 10, 20, … on the first axis.
    """

    broadcasts_latents = False

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        guidance = config.embeds_guidance
        self.time_guidance_embed = TimeTextEmbedding(width, guidance=guidance, bias=False)
        self.double_stream_modulation_img = Modulation(width, 6, bias=False)
        self.double_stream_modulation_txt = Modulation(width, 6, bias=False)
        self.single_stream_modulation = Modulation(width, 3, bias=False)
        self.x_embedder = Linear(config.in_channels, width, bias=False)
        self.context_embedder = Linear(config.cross_dim, width, bias=False)
        self.transformer_blocks = nn.ModuleList(
            Flux2DoubleBlock(width, heads) for _ in range(config.double_blocks)
        )
        self.single_transformer_blocks = nn.ModuleList(
            Flux2SingleBlock(width, heads) for _ in range(config.single_blocks)
        )
        self.norm_out = AdaLayerNorm(width, bias=False)
        self.proj_out = Linear(width, config.out_channels, bias=False)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """x (B, C, H, W), time (B,) 0 to 1000, cond.tokens (B, M, T) → (B, C, H, W)."""
        pictures = [x, *cond.references]
        embedding = functional.silu(self.time_guidance_embed(time, cond, x.dtype))
        mods = self.double_stream_modulation_img(embedding)
        text_mods = self.double_stream_modulation_txt(embedding)
        tokens = [picture.flatten(2).transpose(1, 2) for picture in pictures]
        h = self.x_embedder(torch.cat(tokens, dim=1))  # (B, L, D)
        text = self.context_embedder(cond.tokens.to(x.dtype))  # (B, M, D)
        length = text.shape[1]
        turned = self.rotations(length, pictures)
        for block in self.transformer_blocks:
            h, text = block(h, text, mods, text_mods, turned)
        h = torch.cat([text, h], dim=1)
        mods = self.single_stream_modulation(embedding)
        for block in self.single_transformer_blocks:
            h = block(h, mods, turned)
        height, width = x.shape[-2:]
        h = h[:, length : length + height * width]
        tokens = self.proj_out(self.norm_out(h, embedding))
        out: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return out

    def rotations(self, text: int, pictures: list[Tensor]) -> Tensor:
        """Rotations of `text` tokens, on the last axis, and of the latent's and the references'."""
        grids = [Grid((0, 0, 0, 0), (1, 1, 1, text))]
        for index, picture in enumerate(pictures):
            height, width = picture.shape[-2:]
            grids.append(Grid((REFERENCE_STEP * index, 0, 0, 0), (1, height, width, 1)))
        device = pictures[0].device
        return rotations(grids, self.config.axes, self.config.theta, device)
