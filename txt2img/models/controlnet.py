"""ControlNet: a copy of half a U-Net that turns a picture into residuals for the whole one.

Parameter names are diffusers' ControlNetModel's and ControlNetUnionModel's. Zhang et al. 2023,
"Adding Conditional Control to Text-to-Image Diffusion Models".
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.control_configs import ControlNetConfig
from txt2img.models.layers import (
    Conv2d,
    Linear,
    TimeEmbedding,
    repeat_to_batch,
    swish,
    time_features,
)
from txt2img.models.unet import UNetEncoder


class HintEmbedder(nn.Module):
    """Convolutions that bring a hint's pixels (B, 3, H, W) to the U-Net's first map."""

    def __init__(self, pixels: int, channels: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.conv_in = Conv2d(pixels, channels[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(channels):
            self.blocks.append(Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = Conv2d(channels[-1], out, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = swish(self.conv_in(pixels))
        for block in self.blocks:
            x = swish(block(x))
        out: Tensor = self.conv_out(x)
        return out


class OneTokenAttention(nn.Module):
    """Attention of a token to itself alone: its value. (B, D) → (B, D).

    A Union model's published code attends along the batch, whose rows have the same hint; ComfyUI
    along the one token of a hint. Both are this.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        own = slice(-x.shape[1], None)  # after those of query and key, which decide nothing
        value = functional.linear(x, self.in_proj_weight[own], self.in_proj_bias[own])
        out: Tensor = self.out_proj(value)
        return out


class TypeBlock(nn.Module):
    """Residual block of a Union model over a hint's mean features: (B, D) → (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = OneTokenAttention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": Linear(width, 4 * width), "c_proj": Linear(4 * width, width)}
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        h = self.mlp["c_fc"](self.ln_2(x))
        out: Tensor = x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))
        return out


class ControlNet(UNetEncoder):
    """Latent x, time, text and an embedded hint → residuals for skip connections and middle."""

    def __init__(self, config: ControlNetConfig) -> None:
        unet = config.unet
        super().__init__(unet)
        self.control_config = config
        width, last = unet.channels[0], len(unet.channels) - 1
        self.controlnet_cond_embedding = HintEmbedder(config.hint_channels, config.hint, width)
        skips = [width]
        for level, channels in enumerate(unet.channels):
            skips += [channels] * (unet.layers + (level < last))
        self.controlnet_down_blocks = nn.ModuleList(Conv2d(c, c, 1) for c in skips)
        self.controlnet_mid_block = Conv2d(unet.channels[-1], unet.channels[-1], 1)
        if config.types:
            self.task_embedding = nn.Parameter(torch.empty(config.types, width))
            self.transformer_layes = nn.ModuleList(
                TypeBlock(width) for _ in range(config.type_layers)
            )
            self.spatial_ch_projs = Linear(width, width)
            self.control_add_embedding = TimeEmbedding(
                config.types * config.type_width, unet.time_width
            )

    def embed_hint(self, pixels: Tensor, kind: int | None = None) -> Tensor:
        """The features (B, C, h, w) of a hint's pixels in 0…1, of a Union model's kind."""
        pixels = pixels.flip(1) if self.control_config.is_bgr else pixels
        hint: Tensor = self.controlnet_cond_embedding(pixels)
        if not self.control_config.types or kind is None:
            return hint
        token = hint.mean(dim=(2, 3)) + self.task_embedding[kind]
        for block in self.transformer_layes:
            token = block(token)
        shift: Tensor = self.spatial_ch_projs(token)
        return hint + shift[:, :, None, None]

    def embed_kind(self, kind: int | None, like: Tensor) -> Tensor | None:
        """What a Union model adds to the time embedding for a kind of hint, (1, D)."""
        config = self.control_config
        if not config.types:
            return None
        chosen = torch.arange(config.types, device=like.device) == (-1 if kind is None else kind)
        features = time_features(chosen.float(), config.type_width).flatten()[None]
        out: Tensor = self.control_add_embedding(features.to(like.dtype))
        return out

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Cond,
        hint: Tensor,
        kind: Tensor | None = None,
        first_only: bool = False,
    ) -> list[Tensor]:
        """x (B, C, H, W), time (B,), N·B texts, a hint of 1 or B → residuals of B or N·B.

        `first_only` gives the first skip connection's alone, for U-Nets whose deep features are
        cached.
        """
        tokens = cond.tokens.to(x.dtype)
        x = self.conv_in(x) + hint
        if first_only:
            return [self.controlnet_down_blocks[0](x)]
        if self.add_embedding is not None:
            # The time embedding depends on the text.
            x, time = repeat_to_batch(x, tokens), repeat_to_batch(time, tokens)
        embedding = self.embed(x, time, cond)
        embedding = embedding if kind is None else embedding + kind
        x, skips = self.encode(x, embedding, tokens)
        residuals = [
            zero(skip) for zero, skip in zip(self.controlnet_down_blocks, skips, strict=True)
        ]
        return [*residuals, self.controlnet_mid_block(x)]

    def pooled(self, residuals: list[Tensor]) -> list[Tensor]:
        """Residuals averaged over their maps, if the model is one of those."""
        if not self.control_config.global_pool:
            return residuals
        return [one.mean(dim=(2, 3), keepdim=True) for one in residuals]
