"""TAESD, the tiny autoencoder: latents → pixels in a tenth of a VAE's time, a little coarser.

Parameter names are diffusers' AutoencoderTiny's, but for `conv_in`. Latents are those that the
U-Net sees: it needs no scaling. Ollin Boer Bohan 2023, github.com/madebyollin/taesd.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.configs import TinyConfig
from txt2img.models.layers import Conv2d
from txt2img.models.vae import VAE


class TinyBlock(nn.Module):
    """Three convolutions with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x) + x)


class Layers(nn.Module):
    """Encoder or decoder: a first convolution, then layers, numbered as published."""

    def __init__(self, inputs: int, width: int, layers: dict[int, nn.Module]) -> None:
        super().__init__()
        self.conv_in = Conv2d(inputs, width, 3, padding=1)
        self.layers = nn.ModuleDict({str(number): layer for number, layer in layers.items()})

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for layer in self.layers.values():
            x = layer(x)
        return x


def down(config: TinyConfig) -> dict[int, nn.Module]:
    """Encoder's layers after the first convolution: blocks, halving between levels."""
    layers: list[nn.Module] = []
    for level, blocks in enumerate(config.encoder):
        if level:
            layers.append(Conv2d(config.width, config.width, 3, 2, 1, bias=False))
        layers += [TinyBlock(config.width) for _ in range(blocks)]
    layers.append(Conv2d(config.width, config.latent_channels, 3, padding=1))
    return dict(enumerate(layers, start=1))


def up(config: TinyConfig) -> dict[int, nn.Module]:
    """Decoder's layers after the first convolution: blocks, doubling between levels."""
    layers: list[nn.Module] = [nn.ReLU()]
    last = len(config.decoder) - 1
    for level, blocks in enumerate(config.decoder):
        layers += [TinyBlock(config.width) for _ in range(blocks)]
        if level < last:
            layers += [
                nn.Upsample(scale_factor=2),
                Conv2d(config.width, config.width, 3, padding=1, bias=False),
            ]
    layers.append(Conv2d(config.width, 3, 3, padding=1))
    return dict(enumerate(layers, start=1))


class TinyVAE(nn.Module):
    """Pictures ↔ latents as the U-Net sees them, by few and narrow layers."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Layers(3, config.width, down(config)) if config.encoder else None
        self.decoder = Layers(config.latent_channels, config.width, up(config))

    def encode(self, pixels: Tensor) -> Tensor:
        """The latent (B, C, H/f, W/f) of pixels (B, 3, H, W) in −1…1; needs an encoder."""
        assert self.encoder is not None
        pixels = pixels.to(self.encoder.conv_in.weight.dtype)
        latent: Tensor = self.encoder((pixels + 1) / 2)
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), near −1…1, float32, of a latent (B, C, H/f, W/f)."""
        latent = latent.to(self.decoder.conv_in.weight.dtype)
        pixels: Tensor = self.decoder(torch.tanh(latent / 3) * 3)  # limits outliers
        return (pixels * 2 - 1).float()


AnyVAE = VAE | TinyVAE
