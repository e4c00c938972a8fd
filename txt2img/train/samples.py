"""Drawing while training, for sheets, drafts and lessons: one prompt a picture, of the plain kind.

The tool's own pictures come of `pipeline`; here networks are still learning, and latents suffice.
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
from txt2img.train.config import TrainConfig
from txt2img.train.data import Pictures

SHEET_PICTURES = 16


@cache
def process_of(config: TrainConfig) -> Process:
    """The forward process that the configuration names."""
    if config.prediction == "flow":
        return Flow()
    table = betas("scaled_linear", checkpoint.TIMES, *checkpoint.BETA_RANGE)
    return Diffusion(zero_terminal_snr(table) if config.zero_snr else table)


def levels_of(config: TrainConfig, steps: int) -> list[Level]:
    """`steps` + 1 levels from pure noise to none, by the schedule that suits what is learnt."""
    return SCHEDULES[checkpoint.schedule_of(config)](process_of(config), steps)


def denoiser(
    network: Network, config: TrainConfig, positive: Cond, negative: Cond, cfg: float
) -> Denoise:
    """What a network that learns as `config` says sees in noisy pictures of a prompt."""
    predict = Predictor(network, process_of(config), PREDICTIONS[config.prediction])
    return guided(predict, lambda _: positive, lambda _: negative, cfg)


def drawn(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    sampler: str,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """x (B, C, h, w) taken from the first level to the last, with the steps' `noise`, or none."""
    none = torch.zeros_like(x)
    for state in SAMPLERS[sampler](denoise, x, levels, lambda a, b: noise() if noise else none):
        x = state.x
    return x


def prompts_of_sheet(config: TrainConfig, pictures: Pictures) -> list[str]:
    """What a sheet of samples shows: the configuration's prompts, or the first captions."""
    return list(config.sample_prompts) or [
        row.captions[0] for row in pictures.rows[:SHEET_PICTURES]
    ]


def save_sheet(path: Path, pixels: Tensor, columns: int = 8) -> None:
    """Pictures (N, 3, H, W) in −1…1 side by side in one PNG."""
    count, _, height, width = pixels.shape
    columns = min(columns, count)
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height), "white")
    for index, picture in enumerate(pixels):
        sheet.paste(to_image(picture), (index % columns * width, index // columns * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
