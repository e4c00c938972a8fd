"""Noise a picture, weigh the miss; and how far a VAE's copy is from its original."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from txt2img.diffusion.levels import Level
from txt2img.diffusion.predictions import Prediction


@dataclass(frozen=True)
class LevelBatch:
    """The levels of a batch as one: alpha and sigma (B, 1, 1, 1), so that formulas hold alike."""

    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, levels: Sequence[Level]) -> "LevelBatch":
        """One level a picture, on the CPU."""
        alpha = torch.tensor([level.alpha for level in levels])
        sigma = torch.tensor([level.sigma for level in levels])
        return cls(alpha[:, None, None, None], sigma[:, None, None, None])

    @property
    def snr(self) -> Tensor:
        """Signal to noise (B,): alpha² / sigma²."""
        return (self.alpha / self.sigma).square().flatten()


def add_noise(x0: Tensor, noise: Tensor, levels: LevelBatch) -> Tensor:
    """The forward process in closed form: alpha · x0 + sigma · noise (Ho et al. 2020, eq. 4)."""
    return levels.alpha * x0 + levels.sigma * noise


def snr_weights(kind: str, snr: Tensor, gamma: float | None) -> Tensor:
    """Min-SNR weights (B,) of a miss in the network's output (Hang et al. 2023, §3.4).

    In terms of x0 the weight is min(snr, gamma); eps and v divide it by what their output is worth.
    """
    if gamma is None or kind == "flow":
        return torch.ones_like(snr)
    clipped = snr.clamp(max=gamma)
    return clipped / snr if kind == "eps" else clipped / (snr + 1.0)


def noise_loss(
    output: Tensor, x0: Tensor, noise: Tensor, levels: LevelBatch, prediction: Prediction
) -> Tensor:
    """Each picture's mean squared miss (B,) of the network's output (B, C, H, W)."""
    target = prediction.target(x0, noise, levels)
    return (output.float() - target).square().mean(dim=(1, 2, 3))


def pair_loss(texts: Tensor, sights: Tensor, scale: Tensor) -> Tensor:
    """How ill texts (B, D) and sights (B, D), of length 1, find each other: a scalar.

    The symmetric cross-entropy over all pairs of the batch (Radford et al. 2021, figure 3);
    `scale` is the logarithm of what likeness is multiplied by, 100 at most as there.
    """
    alike = texts @ sights.T * scale.exp().clamp(max=100.0)
    pairs = torch.arange(len(alike), device=alike.device)
    return 0.5 * (functional.cross_entropy(alike, pairs) + functional.cross_entropy(alike.T, pairs))


def copy_loss(copy: Tensor, pixels: Tensor, edges: float) -> Tensor:
    """Mean absolute miss of a copy (B, 3, H, W) and of its edges, a scalar.

    The differences between neighbours count for themselves (Mathieu et al. 2016, §3.2), or sharp
    edges come back soft.
    """
    miss = copy.float() - pixels
    slopes = miss.diff(dim=-1).abs().mean() + miss.diff(dim=-2).abs().mean()
    return miss.abs().mean() + edges * slopes


def vae_loss(
    copy: Tensor, pixels: Tensor, mean: Tensor, log_variance: Tensor, kl: float, edges: float
) -> Tensor:
    """`copy_loss`, plus a little KL (scalar), which only keeps latents near the unit ball."""
    loss = copy_loss(copy, pixels, edges)
    mean, log_variance = mean.float(), log_variance.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
    return loss + kl * divergence.sum(dim=(1, 2, 3)).mean()


def psnr(copy: Tensor, pixels: Tensor) -> float:
    """Peak signal-to-noise ratio, dB, of a copy against pixels in −1…1."""
    miss = functional.mse_loss(copy.float().clamp(-1, 1), pixels)
    return float(10.0 * torch.log10(4.0 / miss))
