"""Retrieval: pictures that are known are found, others are not."""

import pytest
import torch
from torch import Tensor

from txt2img.train.default_model.classifier import SIDE, Caption, Classifier
from txt2img.train.default_model.retrieval import (
    blurred,
    classifier_agreement,
    matches_of,
    nearest,
    share,
)

STYLES = ("3d emoji", "flat emoji")


def gallery(count: int = 8) -> tuple[list[Caption], Tensor]:
    """Pictures that differ, two styles a concept: captions and (2 · count, 3, 32, 32)."""
    captions = [Caption(f"thing {n}, {style}") for n in range(count) for style in STYLES]
    rough = torch.randn(len(captions), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return captions, torch.nn.functional.interpolate(rough, scale_factor=8.0).clamp(-1, 1)


def prompts(captions: list[Caption]) -> list[tuple[str, int]]:
    """The captions' texts with a seed."""
    return [(caption.text, 0) for caption in captions]


def test_known_pictures_are_all_found() -> None:
    captions, pixels = gallery()
    matches = matches_of(prompts(captions), pixels, captions, pixels)
    assert all(v.concept and v.style and v.concept_in_5 for v in matches)
    assert max(v.rmse for v in matches) < 1e-3


def test_noise_and_a_small_shift_are_forgiven() -> None:
    captions, pixels = gallery()
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    drawn = pixels.roll(1, dims=3) + 0.5 * noise
    matches = matches_of(prompts(captions), drawn, captions, pixels)
    assert share([v.style for v in matches]) == 1


def test_shuffled_pictures_are_not_found() -> None:
    captions, pixels = gallery()
    matches = matches_of(prompts(captions), pixels.roll(4, dims=0), captions, pixels)
    assert share([v.concept for v in matches]) == 0


def test_another_style_of_the_same_thing_counts_as_the_concept_only() -> None:
    captions, pixels = gallery()
    swapped = pixels.view(-1, 2, *pixels.shape[1:]).flip(1).reshape(pixels.shape)
    matches = matches_of(prompts(captions), swapped, captions, pixels)
    assert all(v.concept and not v.style for v in matches)
    assert matches[0].nearest == "thing 0, flat emoji"


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


def test_the_classifier_finds_what_it_sees_again() -> None:
    captions, _ = gallery(4)
    pixels = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    classifier = Classifier(["a"], ["b"])
    matches = matches_of(prompts(captions), pixels, captions, pixels)
    assert [v.classified for v in matches] == [None] * 8
    same = classifier_agreement(classifier, matches, pixels, captions, pixels)
    assert [v.classified for v in same] == [True] * 8
    other = classifier_agreement(classifier, matches, pixels.roll(2, dims=0), captions, pixels)
    assert [v.classified for v in other] == [False] * 8
