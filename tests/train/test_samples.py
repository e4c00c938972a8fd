"""What a network that still learns draws: with guidance, by the schedule that suits it."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.train.test_loop import TINY
from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.guidance import Network
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.train.data import Pictures
from txt2img.train.samples import (
    guided_denoiser,
    process_of,
    sample_latents,
    sampling_levels,
    save_sheet,
    sheet_prompts,
)

WORD, NONE = (Cond(torch.full((2, 1, 1), value)) for value in (1.0, 0.0))


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpm++2m"])
def test_a_network_that_knows_the_picture_draws_it_with_guidance(
    prediction: str, sampler: str
) -> None:
    """It sees the words' number everywhere; at cfg 3 that of no words is left behind threefold."""
    config = replace(TINY, prediction=prediction, zero_snr=prediction == "v")
    kind = PREDICTIONS[prediction]
    levels = {process_of(config).time(level): level for level in sampling_levels(config, 4)[:-1]}

    def network(x: Tensor, time: Tensor, cond: Cond, *_: object) -> Tensor:
        level = levels[float(time[0])]
        seen = (0.25 + cond.tokens).expand_as(x[:, :, :, 0])[..., None].expand_as(x)
        return kind.target(seen, (x - level.alpha * seen) / level.sigma, level)

    network.parameters = lambda: iter([torch.zeros(1)])  # type: ignore[attr-defined]
    denoise = guided_denoiser(cast(Network, network), config, WORD, NONE, 3.0)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = sample_latents(denoise, x, sampling_levels(config, 4), sampler)
    assert torch.allclose(found, torch.full_like(x, 3.25), atol=1e-3)


def test_the_steps_noise_is_what_is_given() -> None:
    path, x = sampling_levels(TINY, 3)[:-1], torch.zeros(1, 1, 2, 2)

    def nothing(x: Tensor, _: object) -> Tensor:
        return torch.zeros_like(x)

    ones = sample_latents(nothing, x, path, "euler_a", lambda: torch.ones_like(x))
    assert ones.gt(0.1).all() and torch.equal(ones, ones[:, :, :1, :1].expand_as(ones))
    assert sample_latents(nothing, x, path, "euler_a").eq(0).all()


def test_a_sheet_shows_the_wished_prompts_or_the_first_captions(tmp_path: Path) -> None:
    rows = [type("Row", (), {"captions": (f"{n}", "else")}) for n in range(20)]
    pictures = cast(Pictures, type("Pictures", (), {"rows": rows}))
    assert sheet_prompts(TINY, pictures) == [f"{n}" for n in range(16)]
    assert sheet_prompts(replace(TINY, sample_prompts=("a", "b")), pictures) == ["a", "b"]
    pixels = torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, 3, 4, 6)
    save_sheet(tmp_path / "new" / "sheet.png", pixels)
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size == (8 * 6, 2 * 4)
        assert [sheet.getpixel((3 + 6 * n, 2)) for n in (0, 7)] == [(0, 0, 0), (198, 198, 198)]
        assert sheet.getpixel((9, 6)) == (255, 255, 255)  # the tenth picture
        assert sheet.getpixel((40, 6)) == (255, 255, 255)  # nothing
