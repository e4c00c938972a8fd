"""Train an alpha head: the opacity of each pixel, from a decoder that stays as it is.

It learns from encoded pictures and, as the decoder does, from resampled ones: those that users see
have softer outlines.
"""

from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from txt2img.models.vae import VAE, AlphaHead
from txt2img.train import checkpoint
from txt2img.train.config import TrainConfig
from txt2img.train.data import Pictures
from txt2img.train.finetune_decoder import TRUE_SHARE, resampled_latents, rows_to_noise
from txt2img.train.latent_cache import load_trained_vae
from txt2img.train.objectives import AlphaObjective
from txt2img.train.samples import SHEET_PICTURES, save_sheet
from txt2img.train.stages import batch_rows, step_rng


class AlphaStage:
    """Trains a decoder's alpha head."""

    name = "alpha"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.alpha_run
        self.rates: dict[str, float] = {}
        self.pictures, self.vae = Pictures(config.data), with_alpha_head(config)
        self.rows = rows_to_noise(self.pictures, config.noised_samples, config.seed)
        both = resampled_latents(self.vae, self.pictures, self.rows, config, accelerator)
        self.latents, self.resampled = both
        self.learner: nn.Module = AlphaObjective(self.vae.to(accelerator.device))

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of AlphaObjective: latents and the opacity of their pictures."""
        config = self.config
        rng, _ = step_rng(config, step, self.accelerator)
        picked = batch_rows(
            self.accelerator, len(self.rows), self.run.batch_size, step, config.seed
        )
        sources = [self.latents if rng.random() < TRUE_SHARE else self.resampled for _ in picked]
        latents = [source[n] for source, n in zip(sources, picked, strict=True)]
        return torch.stack(latents), self.opacity(picked).to(self.accelerator.device)

    def opacity(self, picked: list[int]) -> Tensor:
        """The true opacity (N, 1, H, W) of some of the rows."""
        entries = [self.pictures.rows[self.rows[n]] for n in picked]
        return torch.stack([self.pictures.alpha(entry, self.config.size) for entry in entries])

    def draw(self, path: Path) -> None:
        """Draw decoded resampled latents, each with its opacity and the true one beside it."""
        count = min(SHEET_PICTURES, len(self.rows))
        drawn = self.vae.decode_with_alpha(self.resampled[:count]).cpu()
        shapes = torch.stack([drawn[:, 3:], self.opacity(list(range(count)))], dim=1)
        grey = (2.0 * shapes - 1.0).expand(-1, -1, 3, -1, -1)
        save_sheet(path, torch.cat([drawn[:, None, :3], grey], dim=1).flatten(0, 1), columns=12)

    def export(self) -> None:
        """Write vae/alpha.safetensors."""
        checkpoint.save_alpha_head(self.config.out, self.vae)


def with_alpha_head(config: TrainConfig) -> VAE:
    """The trained VAE with an alpha head that knows nothing yet. Raises BadFile without one."""
    vae = load_trained_vae(config)
    vae.config = replace(vae.config, alpha=config.alpha_width)
    vae.alpha = AlphaHead(vae.config)
    return vae
