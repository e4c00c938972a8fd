"""T2I-Adapter: a picture of edges, depths or poses → features that a U-Net adds on its way down.

Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for
Text-to-Image Diffusion Models". Parameter names are diffusers' after `adapter.`.
"""

from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.control_configs import T2IAdapterConfig
from txt2img.models.layers import Conv2d


class Resnet(nn.Module):
    """Two convolutions with a residual connection; the second has one pixel in full adapters."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.block1 = Conv2d(channels, channels, 3, padding=1)
        self.block2 = Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block2(functional.relu(self.block1(x)))
        return out


class Block(nn.Module):
    """One level: halved first if it is `down`, and brought to its width."""

    def __init__(self, channels: int, out: int, inner: int, layers: int, down: bool) -> None:
        super().__init__()
        self.down, light = down, inner != out
        self.in_conv = Conv2d(channels, inner, 1) if light or channels != out else None
        self.resnets = nn.ModuleList(Resnet(inner, 3 if light else 1) for _ in range(layers))
        self.out_conv = Conv2d(inner, out, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            x = functional.avg_pool2d(x, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapter(nn.Module):
    """Pixels (B, C, H, W) in 0…1 → features of each level, and of the middle where XL has none."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        first = config.channels[0]
        pixels = config.in_channels * config.unshuffle**2
        self.conv_in = None if config.light else Conv2d(pixels, first, 3, padding=1)
        before = [pixels if config.light else first, *config.channels[:-1]]
        self.body = nn.ModuleList(
            Block(a, b, b // 4 if config.light else b, config.layers, level in config.downs)
            for level, (a, b) in enumerate(zip(before, config.channels, strict=True))
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Features (B, C, h, w), of the levels of a U-Net in their order."""
        if self.config.in_channels == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        side = self.config.unshuffle
        if any(length % side for length in pixels.shape[-2:]):  # SDXL's sizes are multiples of 8
            sizes = [-(-length // side) * side for length in pixels.shape[-2:]]
            pixels = functional.interpolate(pixels, sizes, mode="bilinear", antialias=True)
        x = functional.pixel_unshuffle(pixels, side)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features
