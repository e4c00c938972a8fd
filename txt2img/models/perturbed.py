"""A U-Net whose self-attention is weakened, for guidance away from what it then draws."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.deepcache import FeatureCache
from txt2img.models.layers import Attention, attention
from txt2img.models.unet import SpatialTransformer, TransformerBlock, UNet

SIGMA_MAX = 9999.9  # from here on all queries are their mean, as in SEG-SDXL


class PerturbedUNet:
    """A U-Net without the self-attention of its middle, or with blurred queries there.

    Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance": each
    token attends to itself. Hong 2024, "Smoothed Energy Guidance": queries are blurred by a
    Gaussian of `sigma` tokens. A U-Net without attention in the middle has it in its deepest block.
    """

    broadcasts_latents = True

    def __init__(self, unet: UNet, sigma: float | None = None) -> None:
        self.unet, self.sigma = unet, sigma
        block, self.halvings = deepest(unet)
        self.layers = [m.attn1 for m in block.modules() if isinstance(m, TransformerBlock)]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The U-Net's weights."""
        return self.unet.parameters()

    def __call__(
        self, x: Tensor, time: Tensor, cond: Cond, cache: FeatureCache | None = None, /
    ) -> Tensor:
        """Output as the U-Net's own, but for the perturbation; it fills no cache."""
        height, width = x.shape[-2:]
        for _ in range(self.halvings):
            height, width = (height + 1) // 2, (width + 1) // 2

        def attend(layer: Attention, x: Tensor, *_: Tensor | None) -> Tensor:
            if self.sigma is None:
                out: Tensor = layer.to_out[0](layer.to_v(x))
                return out
            q = blurred(layer.to_q(x), (height, width), self.sigma)
            out = layer.to_out[0](attention(q, layer.to_k(x), layer.to_v(x), layer.heads, None))
            return out

        before = [layer.optimized for layer in self.layers]
        try:
            for layer in self.layers:
                layer.optimized = attend
            out: Tensor = self.unet(x, time, cond)
            return out
        finally:
            for layer, optimized in zip(self.layers, before, strict=True):
                layer.optimized = optimized


def deepest(unet: UNet) -> tuple[nn.Module, int]:
    """The block whose self-attention is perturbed, and how often its map is halved."""
    depth = len(unet.down_blocks) - 1
    if unet.mid_block is not None and unet.mid_block.attentions is not None:
        return unet.mid_block, depth
    for level in reversed(range(depth + 1)):
        if any(isinstance(m, SpatialTransformer) for m in unet.down_blocks[level].modules()):
            return unet.down_blocks[level], level
    raise AssertionError("a U-Net without attention cannot follow a text")


def blurred(tokens: Tensor, size: tuple[int, int], sigma: float) -> Tensor:
    """Tokens (B, L, D) of a map of a size (height, width) after a Gaussian blur, reflected."""
    if sigma > SIGMA_MAX:
        return tokens.mean(1, keepdim=True).expand_as(tokens)
    maps = tokens.transpose(1, 2).unflatten(2, size)  # (B, D, h, w)
    for axis in (2, 3):
        side = maps.shape[axis]
        wide = math.ceil(6 * sigma)
        count = min(wide + 1 - wide % 2, side - (side % 2 - 1))
        places = torch.arange(count, device=maps.device) - (count - 1) / 2
        weights = torch.exp(-0.5 * (places / sigma) ** 2)
        kernel = (weights / weights.sum()).to(maps.dtype)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        pad = (0, 0, count // 2, count // 2) if axis == 2 else (count // 2, count // 2, 0, 0)
        channels = maps.shape[1]
        maps = functional.conv2d(
            functional.pad(maps, pad, mode="reflect"),
            kernel.reshape(shape).expand(channels, 1, -1, -1),
            groups=channels,
        )
    out: Tensor = maps.flatten(2).transpose(1, 2)
    return out
