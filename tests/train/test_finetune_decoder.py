"""Which pictures are resampled for the decoder, and how."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from tests.train.test_loop import TINY
from txt2img.models.clip import TextEncoder
from txt2img.models.unet import UNet
from txt2img.train import finetune_decoder
from txt2img.train.data import Layer, Pictures, Row
from txt2img.train.finetune_decoder import crop_start, rows_to_noise, sample_from


def test_half_of_the_resampled_are_single_pictures_as_far_as_there_are() -> None:
    plain, scene = Layer("a.png"), Layer("a.png", side=0.5)
    made = [Row((scene if n % 4 else plain,), ("a",), (1.0,)) for n in range(20)]
    pictures = cast(Pictures, SimpleNamespace(rows=made))
    for count, alone in ((4, 2), (9, 5), (20, 5), (99, 5)):
        picked = rows_to_noise(pictures, count, seed=0)
        assert len(picked) == len(set(picked)) == min(count, 20)
        assert sum(n % 4 == 0 for n in picked) == alone


def test_a_perfect_unet_draws_the_true_latent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def knows(*_: object) -> object:
        return lambda *_: x0

    monkeypatch.setattr(finetune_decoder, "guided_denoiser", knows)
    text = SimpleNamespace(encode=lambda captions: captions)
    generator = torch.Generator().manual_seed(1)
    unet = cast(UNet, SimpleNamespace())
    drawn = sample_from(x0, ["a", "b"], 5, cast(TextEncoder, text), unet, TINY, generator)
    assert torch.allclose(drawn, x0, atol=1e-5)


def test_crops_lie_at_borders_more_often_than_chance() -> None:
    rng = random.Random(0)
    starts = Counter(crop_start(16, rng) for _ in range(4000))
    assert set(starts) == set(range(17))
    for border in (0, 16):  # an eighth, and one of 17 places of the rest
        assert abs(starts[border] / 4000 - (1 / 8 + 3 / 4 / 17)) < 0.02
    assert crop_start(0, rng) == 0
