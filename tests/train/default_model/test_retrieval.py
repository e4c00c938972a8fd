"""The verdict: pictures that are known are found, others are not."""

import pytest
import torch
from torch import Tensor

from txt2img.train.default_model.classifier import SIDE, Caption, Judge
from txt2img.train.default_model.retrieval import (
    blurred,
    nearest,
    second_opinion,
    share,
    verdicts_of,
)

STYLES = ("3d emoji", "flat emoji")


def gallery(count: int = 8) -> tuple[list[Caption], Tensor]:
    """Pictures that differ, two styles a concept: captions and (2 · count, 3, 32, 32)."""
    captions = [Caption(f"thing {n}, {style}") for n in range(count) for style in STYLES]
    rough = torch.randn(len(captions), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return captions, torch.nn.functional.interpolate(rough, scale_factor=8.0).clamp(-1, 1)


def test_known_pictures_are_all_found() -> None:
    captions, pixels = gallery()
    verdicts = verdicts_of(captions, range(len(captions)), pixels, captions, pixels)
    assert all(v.concept and v.style and v.concept_in_5 for v in verdicts)
    assert max(v.rmse for v in verdicts) < 1e-3


def test_noise_and_a_small_shift_are_forgiven() -> None:
    captions, pixels = gallery()
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    drawn = pixels.roll(1, dims=3) + 0.5 * noise
    verdicts = verdicts_of(captions, [0] * len(captions), drawn, captions, pixels)
    assert share([v.style for v in verdicts]) == 1


def test_shuffled_pictures_are_not_found() -> None:
    captions, pixels = gallery()
    verdicts = verdicts_of(captions, [0] * len(captions), pixels.roll(4, dims=0), captions, pixels)
    assert share([v.concept for v in verdicts]) == 0


def test_another_style_of_the_same_thing_counts_as_the_concept_only() -> None:
    captions, pixels = gallery()
    swapped = pixels.view(-1, 2, *pixels.shape[1:]).flip(1).reshape(pixels.shape)
    verdicts = verdicts_of(captions, [0] * len(captions), swapped, captions, pixels)
    assert all(v.concept and not v.style for v in verdicts)
    assert verdicts[0].nearest == "thing 0, flat emoji"


def test_nearest_gives_the_rmse_of_fewer_pictures_than_asked_for() -> None:
    places, rmse = nearest(torch.zeros(1, 4), torch.tensor([[2.0] * 4, [1.0] * 4]))
    assert places.tolist() == [[1, 0]]
    assert rmse.tolist() == [[1.0, 2.0]]


def test_blur_keeps_plain_pictures_and_spreads_a_point() -> None:
    plain = torch.full((1, 3, 9, 9), 0.5)
    assert torch.allclose(blurred(plain), plain)
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 4] = 1
    spread = blurred(point)
    assert spread.sum().item() == pytest.approx(1)
    assert spread[0, 0, 4, 5].item() == pytest.approx(0.2420 * 0.3989, rel=0.02)  # the normal curve


def test_the_judge_finds_what_it_sees_again() -> None:
    captions, _ = gallery(4)
    pixels = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    judge = Judge(["a"], ["b"])
    verdicts = verdicts_of(captions, [0] * 8, pixels, captions, pixels)
    assert [v.judged for v in verdicts] == [None] * 8
    same = second_opinion(judge, verdicts, pixels, captions, pixels)
    assert [v.judged for v in same] == [True] * 8
    other = second_opinion(judge, verdicts, pixels.roll(2, dims=0), captions, pixels)
    assert [v.judged for v in other] == [False] * 8
