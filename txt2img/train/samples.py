"""Sampling during training, for sample sheets, decoder fine-tuning and distillation.

Users' pictures come from `pipeline`; here networks are still in training, and latents suffice.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Denoise, Network, Predictor, guided
from txt2img.diffusion.levels import Diffusion, Flow, Level, Process, betas, zero_terminal_snr
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.diffusion.samplers import SAMPLERS
from txt2img.diffusion.schedules import SCHEDULES
from txt2img.pipeline.decode import to_image
from txt2img.train import checkpoint
from txt2img.train.config import BETAS, TrainConfig
from txt2img.train.data import Pictures

SHEET_PICTURES = 16


@cache
def process_of(config: TrainConfig) -> Process:
    """The configured forward process."""
    if config.prediction == "flow":
        return Flow()
    table = betas(config.betas, checkpoint.TIMES, *BETAS[config.betas])
    return Diffusion(zero_terminal_snr(table) if config.zero_snr else table)


def sampling_levels(config: TrainConfig, steps: int) -> list[Level]:
    """`steps` + 1 levels from pure noise to none, by the schedule that suits the training."""
    return SCHEDULES[checkpoint.schedule_name(config)](process_of(config), steps)


def guided_denoiser(
    network: Network, config: TrainConfig, positive: Cond, negative: Cond, cfg: float
) -> Denoise:
    """A guided denoiser of a network that is trained as configured."""
    predict = Predictor(network, process_of(config), PREDICTIONS[config.prediction])
    return guided(predict, lambda _: positive, lambda _: negative, cfg)


def sample_latents(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    sampler: str,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Sample x (B, C, h, w) from the first level to the last, adding `noise` at each step."""
    none = torch.zeros_like(x)
    for state in SAMPLERS[sampler](denoise, x, levels, lambda a, b: noise() if noise else none):
        x = state.x
    return x


def sheet_prompts(config: TrainConfig, pictures: Pictures) -> list[str]:
    """The prompts of a sample sheet: the configured ones, or the first captions."""
    return list(config.sample_prompts) or [
        row.captions[0] for row in pictures.rows[:SHEET_PICTURES]
    ]


def save_sheet(path: Path, pixels: Tensor, columns: int = 8) -> None:
    """Save pictures (N, 3, H, W) in −1…1 as one grid."""
    count, _, height, width = pixels.shape
    columns = min(columns, count)
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height), "white")
    for index, picture in enumerate(pixels):
        sheet.paste(to_image(picture), (index % columns * width, index // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
