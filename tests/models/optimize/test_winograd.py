"""Winograd's transforms: convolutions at every size, as exact as plain ones."""

import pytest
import torch
from torch.nn import functional

from tests.models.optimize.test_cpu import draw
from txt2img.models.optimize import winograd


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (17, 22), (1, 5)])
@pytest.mark.parametrize("batch", [1, 2])
def test_winograd_convolves_at_every_size(size: tuple[int, int], batch: int) -> None:
    x, weight, bias = draw(batch, 5, *size), draw(7, 5, 3, 3, seed=1), draw(7, seed=2)
    expected = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    made = winograd.convolve(x, winograd.transformed(weight), bias)
    torch.testing.assert_close(made.double(), expected, atol=1e-4, rtol=0)


def test_winograd_in_bands_of_tiles_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, matrices = draw(1, 5, 32, 32), winograd.transformed(draw(7, 5, 3, 3, seed=1))
    whole = winograd.convolve(x, matrices, None)
    monkeypatch.setattr(winograd, "CHUNK", 1)
    torch.testing.assert_close(winograd.convolve(x, matrices, None), whole, atol=1e-4, rtol=0)


def test_rounding_costs_some_last_bits_only() -> None:
    # values of variance 1 come out; how exact a plain convolution is differs between processors
    x, weight = draw(1, 256, 16, 16), draw(32, 256, 3, 3, seed=1) / 48
    exact = functional.conv2d(x.double(), weight.double(), padding=1)
    made = winograd.convolve(x, winograd.transformed(weight), None)
    assert float((made - exact).square().mean().sqrt()) < 32 * torch.finfo(torch.float32).eps


def test_a_transformed_filter_is_exact_at_its_points() -> None:
    ends = torch.zeros(1, 1, 3, 3)
    ends[0, 0, 2, 2] = 1.0  # the highest power of both ways: what is left at infinity
    assert winograd.transformed(ends)[35, 0, 0] == 1.0
    assert winograd.transformed(ends)[0, 0, 0] == 0.0
