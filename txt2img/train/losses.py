"""Losses: denoising at many levels, contrastive, and reconstruction by a VAE."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from txt2img.diffusion.levels import Level
from txt2img.diffusion.predictions import PREDICTIONS, Prediction


@dataclass(frozen=True)
class LevelBatch:
    """The levels of a batch as tensors: alpha and sigma (B, 1, 1, 1)."""

    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, levels: Sequence[Level]) -> "LevelBatch":
        """Stack one level per picture, on the CPU."""
        alpha = torch.tensor([level.alpha for level in levels])
        sigma = torch.tensor([level.sigma for level in levels])
        return cls(alpha[:, None, None, None], sigma[:, None, None, None])

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratios (B,): alpha² / sigma²."""
        return (self.alpha / self.sigma).square().flatten()


def add_noise(x0: Tensor, noise: Tensor, levels: LevelBatch) -> Tensor:
    """The forward process in closed form: alpha · x0 + sigma · noise (Ho et al. 2020, eq. 4)."""
    return levels.alpha * x0 + levels.sigma * noise


def snr_weights(kind: str, snr: Tensor, gamma: float | None) -> Tensor:
    """Min-SNR weights (B,) of the squared error of the output (Hang et al. 2023, §3.4).

    The weight of an error in x0 is min(snr, gamma); for eps and v it is divided by their own scale.
    """
    if gamma is None or kind == "flow":
        return torch.ones_like(snr)
    clipped = snr.clamp(max=gamma)
    return clipped / snr if kind == "eps" else clipped / (snr + 1.0)


def denoising_loss(
    output: Tensor, x0: Tensor, noise: Tensor, levels: LevelBatch, prediction: Prediction
) -> Tensor:
    """Mean squared error (B,) of the network's output (B, C, H, W)."""
    target = prediction.target(x0, noise, levels)
    return (output.float() - target).square().mean(dim=(1, 2, 3))


def weighted_loss(
    output: Tensor,
    x0: Tensor,
    noise: Tensor,
    levels: LevelBatch,
    prediction: str,
    gamma: float | None,
) -> Tensor:
    """The mean of a batch's denoising losses by their Min-SNR weights, a scalar."""
    losses = denoising_loss(output, x0, noise, levels, PREDICTIONS[prediction])
    return (snr_weights(prediction, levels.snr, gamma) * losses).mean()


def contrastive_loss(texts: Tensor, images: Tensor, scale: Tensor) -> Tensor:
    """Contrastive loss, a scalar, of normalised texts (B, D) and images (B, D).

    The symmetric cross-entropy over all pairs of the batch (Radford et al. 2021, figure 3);
    `scale` is the logarithm of what similarity is multiplied by, 100 at most as there.
    """
    logits = texts @ images.T * scale.exp().clamp(max=100.0)
    pairs = torch.arange(len(logits), device=logits.device)
    return 0.5 * (
        functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)
    )


def reconstruction_loss(copy: Tensor, pixels: Tensor, edges: float) -> Tensor:
    """Mean absolute error of a copy (B, 3, H, W) and of its gradients, a scalar.

    Differences between neighbours have a term of their own (Mathieu et al. 2016, §3.2), or sharp
    edges come back soft.
    """
    error = copy.float() - pixels
    slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + edges * slopes


def vae_loss(
    copy: Tensor, pixels: Tensor, mean: Tensor, log_variance: Tensor, kl: float, edges: float
) -> Tensor:
    """`reconstruction_loss` plus a small KL term that keeps latents near a unit Gaussian."""
    loss = reconstruction_loss(copy, pixels, edges)
    mean, log_variance = mean.float(), log_variance.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return loss + kl * divergence.sum(dim=(1, 2, 3)).mean()


def psnr(copy: Tensor, pixels: Tensor) -> float:
    """Peak signal-to-noise ratio, dB, of a copy against pixels in −1…1."""
    error = functional.mse_loss(copy.float().clamp(-1, 1), pixels)
    return float(10.0 * torch.log10(4.0 / error))
