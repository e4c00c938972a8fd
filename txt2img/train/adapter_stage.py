"""Adapters of a finished U-Net model: what training LoRAs, embeddings, ControlNets shares.

The model itself stays as it is; something small is trained beside it.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Control, Predictor, guided
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.diffusion.schedules import SCHEDULES
from txt2img.errors import BadRequest
from txt2img.models.configs import UNetConfig
from txt2img.models.vae import VAE
from txt2img.train.config import Run, TrainConfig
from txt2img.train.data import Pictures, drop_captions
from txt2img.train.latent_cache import all_latents
from txt2img.train.losses import LevelBatch, add_noise, weighted_loss
from txt2img.train.samples import sample_latents, save_sheet, sheet_prompts
from txt2img.train.stages import SHEET_STEPS, batch_rows, sample_levels, step_rng
from txt2img.weights.families import Family
from txt2img.weights.load import load

SHEET_PROMPTS = 4


def check_trainable(family: Family) -> None:
    """Raise BadRequest for a model that no adapter can be trained for."""
    network = family.network
    if not isinstance(network, UNetConfig):
        raise BadRequest(f"{family.name} is no U-Net; adapters are trained for U-Nets only")
    if network.embeds_cfg:
        raise BadRequest(f"{family.name} is distilled; train on the model that it was made of")
    if network.extra_channels:
        raise BadRequest(f"{family.name} takes {family.extra_inputs}; train on its plain model")


def cond_of(tokens: Tensor, pooled: Tensor | None = None, size_ids: Tensor | None = None) -> Cond:
    """The condition of what AdapterStage.text_inputs gives."""
    return Cond(tokens, pooled, size_ids)


class AdapterStage(ABC):
    """Trains an adapter on pictures with captions, against the model's own loss."""

    name: str
    learner: nn.Module

    def __init__(self, config: TrainConfig, accelerator: Accelerator, run: Run) -> None:
        self.accelerator, self.run = accelerator, run
        self.rates: dict[str, float] = {}
        self.known: dict[str, Cond] = {}  # of captions
        self.pictures = Pictures(config.data)
        self.model = load(config.base, str(accelerator.device), dtype="float32")
        self.family = self.model.family
        check_trainable(self.family)
        assert isinstance(self.model.vae, VAE)
        self.vae = self.model.vae.requires_grad_(False)
        self.network = self.model.network.requires_grad_(False)
        self.model.text.requires_grad_(False)
        size = config.size or self.family.defaults.width
        if size % self.family.size_multiple:
            raise BadRequest(
                f"size is {size}; {self.family.name} takes multiples of {self.family.size_multiple}"
            )
        self.config = replace(config, size=size)
        self.process = self.family.process.build()
        self.latents = all_latents(self.vae, self.pictures, self.config, accelerator)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """x0, noise (B, C, h, w), time (B,), alpha, sigma (B, 1, 1, 1), then pictures', texts'."""
        config, size, device = self.config, self.run.batch_size, self.accelerator.device
        rng, generator = step_rng(config, step, self.accelerator)
        rows = batch_rows(self.accelerator, len(self.latents), size, step, config.seed)
        captions = [self.prepared(self.pictures.caption(row, rng)) for row in rows]
        captions = drop_captions(captions, config.caption_dropout, rng)
        inputs = sample_levels(self.process, config, rng, len(rows))
        x0 = self.latents[rows]
        noise = torch.randn(x0.shape, generator=generator, device=device)
        own = *self.row_inputs(rows), *self.text_inputs(captions)
        return (x0, noise, *(part.to(device) for part in inputs), *own)

    def row_inputs(self, rows: Sequence[int]) -> tuple[Tensor, ...]:
        """What the learner takes of pictures besides their latents."""
        return ()

    def prepared(self, caption: str) -> str:
        """A caption as it is trained with."""
        return caption

    def text_inputs(self, captions: Sequence[str]) -> tuple[Tensor, ...]:
        """What the learner takes of captions, by default tokens (B, L, D), and what SDXL adds.

        Pooled texts and size ids; each caption is encoded once.
        """
        with torch.no_grad():
            for caption in captions:
                if caption not in self.known:
                    self.known[caption] = self.cond([caption]).on(torch.device("cpu"))
        length = max(self.known[caption].tokens.shape[1] for caption in captions)
        rows = [self.known[caption].padded_to(length) for caption in captions]
        cond = reduce(Cond.join, rows).on(self.accelerator.device)
        parts = cond.tokens, cond.pooled, cond.size_ids
        return tuple(part for part in parts if part is not None)

    @abstractmethod
    def export(self) -> None:
        """Write the adapter's file."""

    def cond(self, captions: Sequence[str]) -> Cond:
        """The conditions of captions, one chunk each or as many as the longest has."""
        return self.with_sizes(self.model.text.encode(captions))

    def with_sizes(self, cond: Cond) -> Cond:
        """A condition with SDXL's sizes, those of the training pictures."""
        sizes = self.family.size_ids(self.config.size, self.config.size, True)
        if not sizes:
            return cond
        rows = torch.tensor([sizes] * len(cond.tokens), device=cond.tokens.device)
        return replace(cond, size_ids=rows)

    def loss(
        self, cond: Cond, x0: Tensor, noise: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        """The weighted squared error, a scalar, of the network's output at levels of a batch."""
        levels, kind = LevelBatch(alpha, sigma), self.family.prediction
        dtype = next(self.network.parameters()).dtype
        noisy = add_noise(x0, noise, levels).to(dtype)
        output = self.network(noisy, time, cond.to(dtype))
        return weighted_loss(output, x0, noise, levels, kind, self.config.min_snr)

    def draw(self, path: Path) -> None:
        """Draw the configured prompts, or the first captions."""
        prompts = itertools.islice(sheet_prompts(self.config, self.pictures), SHEET_PROMPTS)
        generator = torch.Generator().manual_seed(self.config.seed)
        save_sheet(path, torch.cat([self.drawn(self.prepared(p), generator) for p in prompts]))

    def drawn(
        self, prompt: str, generator: torch.Generator, control: Control | None = None
    ) -> Tensor:
        """Pixels (1, 3, H, W) of a prompt, by the model's own guidance and schedule."""
        defaults = self.family.defaults
        levels = SCHEDULES[str(defaults.schedule)](self.process, SHEET_STEPS)
        kind = PREDICTIONS[self.family.prediction]
        predict = Predictor(self.network, self.process, kind, control=control)
        words, empty = self.cond([prompt]), self.cond([""])
        length = max(words.tokens.shape[1], empty.tokens.shape[1])
        words, empty = words.padded_to(length), empty.padded_to(length)
        denoise = guided(predict, lambda _: words, lambda _: empty, defaults.cfg)
        x = torch.randn(1, *self.latents.shape[1:], generator=generator)
        x = sample_latents(denoise, x.to(self.latents) * levels[0].sigma, levels, "ddim")
        return self.vae.decode(x).cpu()
