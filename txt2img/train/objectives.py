"""Training objectives: modules whose forward returns the loss of a batch."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.clip import TextEncoder
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.train.config import TrainConfig
from txt2img.train.losses import (
    LevelBatch,
    add_noise,
    contrastive_loss,
    reconstruction_loss,
    vae_loss,
    weighted_loss,
)


class VAEObjective(nn.Module):
    """The VAE's loss on a batch of crops."""

    def __init__(self, vae: VAE, config: TrainConfig) -> None:
        super().__init__()
        self.vae, self.kl, self.edges = vae, config.kl, config.edges

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """pixels (B, 3, H, W) in −1…1, noise (B, C, H/f, W/f) → the loss, a scalar."""
        mean, log_variance = self.vae.moments(pixels)
        latent = mean + torch.exp(0.5 * log_variance) * noise.to(mean.dtype)
        copied = self.vae.reconstruct(latent)
        return vae_loss(copied, pixels, mean, log_variance, self.kl, self.edges)


class DecoderObjective(nn.Module):
    """The loss of a VAE's decoder alone, on encoded and on sampled latents."""

    def __init__(self, vae: VAE, config: TrainConfig) -> None:
        super().__init__()
        # in a tuple, hidden from `parameters`: only the modules below are trained
        self.hidden, self.edges = (vae,), config.edges
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.requires_grad_(True)

    def forward(self, latents: Tensor, pixels: Tensor) -> Tensor:
        """latents (B, C, h, w), pixels (B, 3, f·h, f·w) in −1…1 → the loss, a scalar."""
        return reconstruction_loss(self.hidden[0].decode(latents), pixels, self.edges)


class AlphaObjective(nn.Module):
    """The loss of a decoder's alpha head alone."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.hidden = (vae,)  # in a tuple, hidden from `parameters`
        assert vae.alpha is not None
        self.alpha = vae.alpha
        self.requires_grad_(True)

    def forward(self, latents: Tensor, opacity: Tensor) -> Tensor:
        """latents (B, C, h, w), opacity (B, 1, f·h, f·w) in 0…1 → the loss, a scalar.

        Cross-entropy finds the shape, the absolute error keeps edges steep.
        """
        with torch.no_grad():
            maps = self.hidden[0].decoder_maps(latents)
        logits = self.alpha(*maps).float()
        entropy = functional.binary_cross_entropy_with_logits(logits, opacity)
        loss: Tensor = entropy + (logits.sigmoid() - opacity).abs().mean()
        return loss


class ContrastiveObjective(nn.Module):
    """The contrastive loss of text encoder and image encoder."""

    def __init__(self, text: TextEncoder, config: TrainConfig) -> None:
        super().__init__()
        width = config.text.width
        self.text, self.image = text, image_encoder(config.vae.latent_channels, width)
        self.projection = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(math.log(1.0 / 0.07)))

    def embed(self, latents: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised text and image embeddings (B, D) of ids (B, L) and latents (B, C, h, w)."""
        rows = torch.arange(len(ids), device=ids.device)
        states = self.text(ids)[rows, self.text.end_positions(ids)]
        texts = functional.normalize(self.projection(states).float(), dim=-1)
        return texts, functional.normalize(self.image(latents).float(), dim=-1)

    def forward(self, latents: Tensor, ids: Tensor) -> Tensor:
        """The loss, a scalar, of a batch whose n-th caption belongs to its n-th latent."""
        texts, images = self.embed(latents, ids)
        return contrastive_loss(texts, images, self.scale)


def image_encoder(channels: int, width: int) -> nn.Sequential:
    """A small CNN from latents (B, channels, h, w) to embeddings (B, width)."""
    layers: list[nn.Module] = []
    for size, stride in ((64, 1), (128, 2), (256, 2), (256, 1)):
        layers += [nn.Conv2d(channels, size, 3, stride, 1), nn.GroupNorm(16, size), nn.SiLU()]
        channels = size
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 256, width))


class DenoisingObjective(nn.Module):
    """The denoising loss of U-Net and text encoder."""

    def __init__(self, text: TextEncoder, unet: UNet, config: TrainConfig) -> None:
        super().__init__()
        self.text, self.unet = text, unet
        self.prediction, self.gamma = config.prediction, config.min_snr

    def forward(
        self, x0: Tensor, noise: Tensor, ids: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        """x0, noise (B, C, h, w), ids (B, L), time (B,), alpha, sigma (B, 1, 1, 1) → a scalar."""
        levels = LevelBatch(alpha, sigma)
        output = self.unet(add_noise(x0, noise, levels), time, Cond(self.text(ids)))
        return weighted_loss(output, x0, noise, levels, self.prediction, self.gamma)
