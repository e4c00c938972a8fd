"""The latent U-Net of SD 1, SD 2 and SDXL: noisy latent, time, text → predicted noise.

Parameter names are diffusers' UNet2DConditionModel's, so that its folders need no key map.
Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; Podell et al.
2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis".
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from itertools import chain, zip_longest

import torch
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.deepcache import FeatureCache
from txt2img.models.configs import UNetConfig
from txt2img.models.layers import (
    Attention,
    Conv2d,
    Downsample,
    FeedForward,
    Linear,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    repeat_to_batch,
    scale_features,
    swish,
    time_features,
)
from txt2img.models.optimize.token_merging import merge
from txt2img.request.fields import Tile


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention on the text, feed-forward; each with a residual."""

    def __init__(self, width: int, cross_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, cross_dim, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, tokens: Tensor, size: tuple[int, int], merging: float) -> Tensor:
        """x (B, L, D), tokens of a map of `size` (height, width); a share `merging` is merged."""
        x = x + self.self_attention(self.norm1(x), size, merging)
        x = repeat_to_batch(x, tokens)  # from here on the texts differ
        x = x + self.attn2(self.norm2(x), tokens)
        out: Tensor = x + self.ff(self.norm3(x))
        return out

    def self_attention(self, x: Tensor, size: tuple[int, int], merging: float) -> Tensor:
        """Self-attention, with a share `merging` of the tokens merged."""
        if not merging:
            out: Tensor = self.attn1(x)
            return out
        merged = merge(x, *size, merging)
        return merged.unmerge(self.attn1(merged.tokens, counts=merged.counts))


class SpatialTransformer(nn.Module):
    """Transformer blocks over a map's pixels: (B, C, H, W) → (B, C, H, W)."""

    merging = 0.0  # share of the map's tokens that is merged for self-attention

    def __init__(self, config: UNetConfig, level: int, depth: int) -> None:
        super().__init__()
        width, self.linear = config.channels[level], config.linear_projection
        self.norm = nn.GroupNorm(config.groups, width, eps=1e-6)
        self.proj_in = self._projection(width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, config.cross_dim, config.heads[level]) for _ in range(depth)
        )
        self.proj_out = self._projection(width)

    def _projection(self, width: int) -> nn.Module:
        """SD 1 projects by 1×1 convolutions, SD 2 by linear layers of the same effect."""
        return Linear(width, width) if self.linear else Conv2d(width, width, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(x)
        if self.linear:
            h = self.proj_in(h.flatten(2).transpose(1, 2))  # (B, H·W, C)
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, tokens, (height, width), self.merging)
        if self.linear:
            h = self.proj_out(h).transpose(1, 2).unflatten(2, (height, width))
        else:
            h = self.proj_out(h.transpose(1, 2).unflatten(2, (height, width)))
        out: Tensor = repeat_to_batch(x, h) + h
        return out


class DownBlock(nn.Module):
    """One level on the way down; also returns its maps as skip connections."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        before, width = config.channels[max(level - 1, 0)], config.channels[level]
        self.resnets = nn.ModuleList(
            _resnet(config, before if layer == 0 else width, width)
            for layer in range(config.layers)
        )
        depths = config.depths(level, config.layers)
        self.attentions = _attentions(config, level, depths) if config.attention[level] else None
        last = level == len(config.channels) - 1
        self.downsamplers = None if last else nn.ModuleList([Downsample(width)])

    def forward(
        self, x: Tensor, time: Tensor, tokens: Tensor, feature: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Map and skip connections; a T2I-Adapter's `feature` is added to both.

        That is before the map is halved where the level has attention, and after it elsewhere.
        """
        skips = []
        for layer, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions is not None:
                x = self.attentions[layer](x, tokens)
            skips.append(x)
        if feature is not None and self.attentions is not None:
            x = skips[-1] = added(x, feature)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        if feature is not None and self.attentions is None:
            x = skips[-1] = added(x, feature)
        return x, skips


class MidBlock(nn.Module):
    """Middle of the U-Net: residual, transformer, residual; some models have only the first."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width, level = config.channels[-1], len(config.channels) - 1
        full = config.middle == "full"
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in range(1 + full))
        self.attentions = _attentions(config, level, config.depths(level, 1)[:1]) if full else None

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        x = self.resnets[0](x, time)
        if self.attentions is not None:
            x = self.attentions[0](x, tokens)
            x = self.resnets[1](x, time)
        return x


class UpBlock(nn.Module):
    """One level on the way up; each residual block also takes a skip connection."""

    freeu: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None  # of x and skip

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        width, count = config.channels[level], config.layers + 1
        below = config.channels[min(level + 1, len(config.channels) - 1)]
        skip_widths = [width] * config.layers + [config.channels[max(level - 1, 0)]]
        self.resnets = nn.ModuleList(
            _resnet(config, (below if layer == 0 else width) + skip_widths[layer], width)
            for layer in range(count)
        )
        depths = config.depths(level, count, up=True)
        self.attentions = _attentions(config, level, depths) if config.attention[level] else None
        self.upsamplers = nn.ModuleList([Upsample(width)]) if level else None

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        time: Tensor,
        tokens: Tensor,
        layers: slice = slice(None),
    ) -> Tensor:
        for layer, resnet in list(enumerate(self.resnets))[layers]:
            skip = repeat_to_batch(skips.pop(), x)
            if self.freeu is not None:
                x, skip = self.freeu(x, skip)
            x = resnet(torch.cat([x, skip], dim=1), time)
            if self.attentions is not None:
                x = self.attentions[layer](x, tokens)
        if self.upsamplers is not None:
            height, width = skips[-1].shape[-2:]  # an odd size is not twice its half
            x = self.upsamplers[0](x, (height, width))
        return x


def added(x: Tensor, residual: Tensor) -> Tensor:
    """The sum of two maps, of which either may be there once for all texts."""
    if len(x) < len(residual):
        return repeat_to_batch(x, residual) + residual
    return x + repeat_to_batch(residual, x)


def _resnet(config: UNetConfig, channels: int, out: int) -> ResnetBlock:
    return ResnetBlock(channels, out, config.groups, 1e-5, config.time_width)


def _attentions(config: UNetConfig, level: int, depths: tuple[int, ...]) -> nn.ModuleList:
    return nn.ModuleList(SpatialTransformer(config, level, depth) for depth in depths)


class UNetEncoder(nn.Module):
    """First half of a U-Net, which a ControlNet copies: embeddings, the way down, the middle.

    With N·B texts, latents are repeated N times, but only at the first cross-attention: layers
    before it are computed once.
    """

    broadcasts_latents = True

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels = range(len(config.channels))
        self.conv_in = Conv2d(config.in_channels, config.channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(
            config.channels[0], config.time_width, config.scale_width
        )
        added = config.pooled + config.sizes * config.size_width
        self.add_embedding = TimeEmbedding(added, config.time_width) if added else None
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in levels)
        self.mid_block = MidBlock(config) if config.middle != "none" else None

    def added_cond(self, cond: Cond) -> Tensor:
        """Features of SDXL's pooled text and size ids: (B, pooled + sizes · size_width)."""
        assert cond.pooled is not None and cond.size_ids is not None
        sizes = time_features(cond.size_ids.flatten(), self.config.size_width)  # (B·sizes, width)
        return torch.cat([cond.pooled.float(), sizes.view(len(cond.size_ids), -1)], dim=-1)

    def guidance_features(self, cond: Cond) -> Tensor | None:
        """Features (B, scale_width) of the guidance scale, for an LCM."""
        if not self.config.scale_width:
            return None
        assert cond.guidance is not None
        return scale_features(cond.guidance, self.config.scale_width)

    def embed(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The embedding (B, 4·channels) of time, and of all else but tokens, in x's dtype."""
        features = time_features(time, self.config.channels[0])
        guidance = self.guidance_features(cond)
        guidance = None if guidance is None else guidance.to(x.dtype)
        embedding: Tensor = self.time_embedding(features.to(x.dtype), guidance)
        if self.add_embedding is not None:
            embedding = embedding + self.add_embedding(self.added_cond(cond).to(x.dtype))
        return embedding

    def encode(
        self, x: Tensor, embedding: Tensor, tokens: Tensor, features: Sequence[Tensor] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The middle's output, and the skip connections, of the first convolution's output x.

        T2I-Adapters' features are added to each level's map; one more than levels to the middle's.
        """
        skips = [x]
        for down, feature in zip_longest(self.down_blocks, features[: len(self.down_blocks)]):
            x, outputs = down(x, embedding, tokens, feature)
            skips += outputs
        if self.mid_block is not None:
            x = self.mid_block(x, embedding, tokens)
        for feature in features[len(self.down_blocks) :]:
            x = added(x, feature)
        return x, skips


class UNet(UNetEncoder):
    """Latent x (B, C, H, W), time (B,), text → predicted noise (B, C', H, W)."""

    merging = 0.0
    tile: Tile | None = None  # the axes of circular padding (seamless.py)
    freeu: Hashable = None  # what freeu.py has set

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        levels = reversed(range(len(config.channels)))
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in levels)
        self.conv_norm_out = nn.GroupNorm(config.groups, config.channels[0], eps=1e-5)
        self.conv_out = Conv2d(config.channels[0], config.out_channels, 3, padding=1)

    def merge_tokens(self, ratio: float) -> None:
        """Set the share of tokens to merge in the largest maps with attention; 0: none.

        Self-attention costs most there: its work grows with the square of the number of tokens.
        """
        self.merging = ratio
        level = self.config.attention.index(True) if any(self.config.attention) else 0
        for block in (self.down_blocks[level], self.up_blocks[-1 - level]):
            for part in block.modules():
                if isinstance(part, SpatialTransformer):
                    part.merging = ratio

    @cached_property
    def cross_attentions(self) -> list[Attention]:
        """The cross-attentions in the order of an IP-Adapter's keys: down, up, middle."""
        parts = (self.down_blocks, self.up_blocks, self.mid_block)
        modules = chain.from_iterable(part.modules() for part in parts if part is not None)
        return [block.attn2 for block in modules if isinstance(block, TransformerBlock)]

    def forward(
        self, x: Tensor, time: Tensor, cond: Cond, cache: FeatureCache | None = None
    ) -> Tensor:
        """x (B, C, H, W), time (B,), cond.tokens (N·B, L, D) → (N·B, C, H, W).

        Deep features are read from `cache`, or fill it; the first convolution and the last layer
        are always computed.
        """
        if not cond.image_prompts:
            return self.predict(x, time, cond, cache)
        from txt2img.models.ip_adapter import set_beside

        height, width = x.shape[-2:]
        set_beside(self.cross_attentions, cond.image_prompts, (height, width))
        try:
            return self.predict(x, time, cond, cache)
        finally:
            set_beside(self.cross_attentions, (), (height, width))

    def predict(self, x: Tensor, time: Tensor, cond: Cond, cache: FeatureCache | None) -> Tensor:
        """What `forward` does, after the cross-attentions were told of image prompts."""
        tokens = cond.tokens.to(x.dtype)
        if self.add_embedding is not None or cond.extra_channels is not None:
            # The time embedding depends on the text, or the first layer on the condition.
            x, time = repeat_to_batch(x, tokens), repeat_to_batch(time, tokens)
        if cond.extra_channels is not None:
            x = torch.cat([x, cond.extra_channels.to(x.dtype)], dim=1)
        embedding = self.embed(x, time, cond)
        x = self.conv_in(x)
        cache = FeatureCache() if cache is None else cache
        if cache.features is None:
            cache.features = self.deep_features(x, embedding, tokens, cond)
        if cond.residuals:
            x = added(x, cond.residuals[0])
        x = self.up_blocks[-1](cache.features, [x], embedding, tokens, slice(-1, None))
        out: Tensor = self.conv_out(swish(self.conv_norm_out(x)))
        return repeat_to_batch(out, tokens)

    def deep_features(self, x: Tensor, embedding: Tensor, tokens: Tensor, cond: Cond) -> Tensor:
        """Input of the last layer on the way up, but for its skip connection: (N·B, C', H, W).

        Residuals of ControlNets are added to the skip connections and, the last, to the middle.
        """
        x, skips = self.encode(x, embedding, tokens, cond.features)
        if residuals := cond.residuals:
            skips = [added(skip, one) for skip, one in zip(skips, residuals[:-1], strict=True)]
            x = added(x, residuals[-1])
        *ups, last = self.up_blocks
        for up in ups:
            x = up(x, skips, embedding, tokens)
        out: Tensor = last(x, skips, embedding, tokens, slice(-1))
        return out
