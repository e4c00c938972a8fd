"""Variational autoencoder: pictures ↔ latents an eighth or a sixteenth as high and wide.

Parameter names are diffusers' AutoencoderKL's. Kingma & Welling 2014; Rombach et al. 2022, §3.1.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.configs import VAEConfig
from txt2img.models.layers import Attention, Conv2d, Downsample, ResnetBlock, Upsample, swish


class PixelAttention(Attention):
    """Self-attention with one head over all pixels of a map, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 1, bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)

    def forward(
        self, x: Tensor, context: Tensor | None = None, counts: Tensor | None = None
    ) -> Tensor:
        height, width = x.shape[-2:]
        pixels = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        mixed: Tensor = super().forward(pixels)
        out: Tensor = x + mixed.transpose(1, 2).unflatten(2, (height, width))
        return out


class VAEMidBlock(nn.Module):
    """Middle of the VAE: residual, attention where the model has it, residual."""

    def __init__(self, config: VAEConfig, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(width, width, config.groups, 1e-6) for _ in range(2)
        )
        self.attentions = (
            nn.ModuleList([PixelAttention(width, config.groups)]) if config.mid_attention else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attentions is not None:
            x = self.attentions[0](x)
        out: Tensor = self.resnets[1](x)
        return out


class VAEBlock(nn.Module):
    """One level: residual blocks, then halve or double the map."""

    def __init__(
        self, channels: int, out: int, layers: int, groups: int, resample: str | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels if layer == 0 else out, out, groups, 1e-6)
            for layer in range(layers)
        )
        if resample == "down":
            self.downsamplers = nn.ModuleList([Downsample(out, asymmetric_pad=True)])
        if resample == "up":
            self.upsamplers = nn.ModuleList([Upsample(out)])
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if self.resample == "down":
            x = self.downsamplers[0](x)
        if self.resample == "up":
            x = self.upsamplers[0](x)
        return x


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) → mean and log variance of the latent (B, 2·C, H/f, W/f)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, last = config.channels, len(config.channels) - 1
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            VAEBlock(
                widths[max(level - 1, 0)],
                width,
                config.layers,
                config.groups,
                None if level == last else "down",
            )
            for level, width in enumerate(widths)
        )
        self.mid_block = VAEMidBlock(config, widths[-1])
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = Conv2d(widths[-1], 2 * config.map_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        out: Tensor = self.conv_out(swish(self.conv_norm_out(x)))
        return out


class Decoder(nn.Module):
    """Latent (B, C, h, w) → pixels (B, 3, f·h, f·w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = (config.decoder_channels or config.channels)[::-1]
        last = len(widths) - 1
        self.conv_in = Conv2d(config.map_channels, widths[0], 3, padding=1)
        self.mid_block = VAEMidBlock(config, widths[0])
        self.up_blocks = nn.ModuleList(
            VAEBlock(
                widths[max(level - 1, 0)],
                width,
                config.layers + 1,
                config.groups,
                None if level == last else "up",
            )
            for level, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.conv_out = Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latent))
        for block in self.up_blocks:
            x = block(x)
        return self.pixels_of(x)

    def maps(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three maps for an alpha head: of the latent's size, half the pixels', the pixels'."""
        coarse = half = x = self.mid_block(self.conv_in(latent))
        for level, block in enumerate(self.up_blocks):
            x = block(x)
            if level == len(self.up_blocks) - 3:  # of the last two, only the first doubles it
                half = x
        return coarse, half, x

    def pixels_of(self, last: Tensor) -> Tensor:
        """Pixels (B, 3, f·h, f·w) of the last map."""
        out: Tensor = self.conv_out(swish(self.conv_norm_out(last)))
        return out


class LatentNorm(nn.Module):
    """Batch norm of FLUX.2's latents (B, C, h, w), by the means and variances of its training."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = self._statistics()
        return (x - mean) / deviation

    def inverse(self, x: Tensor) -> Tensor:
        """What gives x when it is normalised."""
        mean, deviation = self._statistics()
        return x * deviation + mean

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, (C, 1, 1)."""
        deviation = torch.sqrt(self.running_var + self.eps)
        return self.running_mean[:, None, None], deviation[:, None, None]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Patches of a map (B, C, h·p, w·p) as channels, (B, C·p², h, w)."""
    return functional.pixel_unshuffle(x, patch) if patch > 1 else x


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """The map (B, C, h·p, w·p) of patches as channels (B, C·p², h, w)."""
    return functional.pixel_shuffle(x, patch) if patch > 1 else x


class VAE(nn.Module):
    """Pictures ↔ latents, scaled as the network sees them."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.map_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = (
            Conv2d(2 * channels, 2 * channels, 1) if config.quant_conv else nn.Identity()
        )
        self.post_quant_conv = Conv2d(channels, channels, 1) if config.quant_conv else nn.Identity()
        self.bn = LatentNorm(config.latent_channels, config.norm_eps) if config.norm_eps else None
        self.alpha = None
        if config.alpha:
            self.alpha = AlphaHead(config)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the encoder's map of pixels (B, 3, H, W) in −1…1."""
        mean, log_variance = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latent (B, C, H/f, W/f) of pixels (B, 3, H, W): its mean, or a sample by `noise`."""
        mean, log_variance = self.moments(pixels.to(self.encoder.conv_in.weight.dtype))
        latent = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
        return self.scaled(patchify(latent, self.config.patch))

    def spread(self, pixels: Tensor) -> Tensor:
        """Mean and log variance (B, 2·C, H/f, W/f), unscaled, of the latent of pixels."""
        mean, log_variance = self.moments(pixels.to(self.encoder.conv_in.weight.dtype))
        patch = self.config.patch
        return torch.cat([patchify(mean, patch), patchify(log_variance, patch)], dim=1)

    def scaled(self, latent: Tensor) -> Tensor:
        """An unscaled latent (B, C, h, w) as the network sees it."""
        if self.bn is not None:
            return self.bn.forward(latent)
        return (latent - self.config.shift) * self.config.scaling

    def unscaled(self, latent: Tensor) -> Tensor:
        """The decoder's map of a latent that is scaled as the network sees it."""
        if self.bn is not None:
            latent = self.bn.inverse(latent)
        else:
            latent = latent / self.config.scaling + self.config.shift
        return unpatchify(latent, self.config.patch)

    def reconstruct(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of a decoder's map, an unscaled latent, in the weights' dtype."""
        out: Tensor = self.decoder(self.post_quant_conv(latent))
        return out

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), near −1…1, float32, of a scaled latent (B, C, H/f, W/f)."""
        latent = latent.to(self.decoder.conv_in.weight.dtype)
        return self.reconstruct(self.unscaled(latent)).float()

    def decode_with_alpha(self, latent: Tensor) -> Tensor:
        """Pixels and opacity (B, 4, H, W) of a scaled latent, as `decode`; opacity is in 0…1."""
        assert self.alpha is not None, "the VAE has no alpha head"
        maps = self.decoder_maps(latent)
        pixels = self.decoder.pixels_of(maps[-1]).float()
        return torch.cat([pixels, self.alpha(*maps).float().sigmoid()], dim=1)

    def decoder_maps(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The decoder's maps of a scaled latent (B, C, h, w) that an alpha head reads."""
        latent = latent.to(self.decoder.conv_in.weight.dtype)
        return self.decoder.maps(self.post_quant_conv(self.unscaled(latent)))


DILATIONS = (1, 2, 4, 8)  # of the coarse map: together they see 31 cells, a whole small picture


class AlphaHead(nn.Module):
    """Opacity's logits (B, 1, H, W) from three maps of a decoder, the coarse one first.

    What is inside a white thing on white ground only its surroundings tell: that is decided on the
    coarse map, the edge on the finer ones.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        wide, width, channels = 2 * config.alpha, config.alpha, config.channels
        self.coarse_in = nn.Conv2d(channels[-1], wide, 1)
        self.context = nn.ModuleList(
            nn.Conv2d(wide, wide, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        self.half_in = nn.Conv2d(channels[min(2, len(channels) - 1)], width, 1)
        self.join_half = nn.Conv2d(wide + width, width, 3, padding=1)
        self.full_in = nn.Conv2d(channels[0], width, 1)
        self.join_full = nn.Conv2d(2 * width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, coarse: Tensor, half: Tensor, full: Tensor) -> Tensor:
        x = self.coarse_in(coarse)
        for layer in self.context:
            x = x + layer(functional.silu(x))
        x = self.join_half(functional.silu(_side_by_side(x, self.half_in(half))))
        x = self.join_full(functional.silu(_side_by_side(x, self.full_in(full))))
        out: Tensor = self.out(functional.silu(x))
        return out


def _side_by_side(small: Tensor, large: Tensor) -> Tensor:
    """Channels of both maps, the small one enlarged to the other's size."""
    small = functional.interpolate(small, size=large.shape[-2:], mode="bilinear")
    return torch.cat([small, large], dim=1)
