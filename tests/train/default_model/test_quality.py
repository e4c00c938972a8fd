"""Quality against the art: what is the same is perfect, what is not is told by how much."""

import pytest
import torch
from torch import Tensor

from txt2img.train.default_model import quality
from txt2img.train.default_model.quality import (
    SIDE,
    aligned_psnr,
    edge_steepness,
    flatness,
    ground_error,
    off_white,
    similarity,
)


def art(side: int = 2 * SIDE, left: float = 0.2, right: float = 0.7) -> Tensor:
    """A red bar with a green end on white (3, side, side), which differs from its mirror image."""
    pixels = torch.ones(3, side, side)
    top, bottom = side // 4, side * 3 // 4
    pixels[1:, top:bottom, round(left * side) : round(right * side)] = -1.0
    pixels[:, top:bottom, round(left * side) : round((left + 0.1) * side)] = torch.tensor(
        [-1.0, 1.0, -1.0]
    )[:, None, None]
    return pixels


def shrunk(pixels: Tensor, scale: float, left: int, top: int) -> Tensor:
    """A picture smaller on white, its corner at a pixel of SIDE."""
    side = round(SIDE * scale)
    page = torch.ones(3, SIDE, SIDE)
    small = torch.nn.functional.interpolate(pixels[None], (side, side), mode="area")[0]
    page[:, top : top + side, left : left + side] = small
    return torch.nn.functional.interpolate(page[None], scale_factor=2.0)[0]


def test_a_copy_is_perfect() -> None:
    assert aligned_psnr(art(), art()) == quality.BEST


@pytest.mark.parametrize("scale", [0.8, 0.9])
@pytest.mark.parametrize("mirrored", [False, True])
def test_scale_place_and_mirror_cost_nothing(scale: float, mirrored: bool) -> None:
    drawn = shrunk(art(), scale, left=9, top=3)
    assert aligned_psnr(drawn.flip(-1) if mirrored else drawn, art()) > 50


def test_noise_costs_what_it_is() -> None:
    """Noise of deviation 0.1 in −1…1 is 10 · log10(4 / 0.01) = 26 dB before it is averaged."""
    noise = 0.1 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert aligned_psnr(art(SIDE) + noise, art(SIDE)) == pytest.approx(26.0, abs=0.1)


def test_another_thing_is_far_away() -> None:
    assert aligned_psnr(torch.ones(3, SIDE, SIDE), art(SIDE)) < 12
    assert aligned_psnr(art(left=0.0, right=1.0), art()) < 15


def test_soft_edges_are_less_steep_and_noise_is_less_flat() -> None:
    soft = torch.nn.functional.avg_pool2d(art()[None], 5, 1, 2, count_include_pad=False)[0]
    assert edge_steepness(art(), art()) == pytest.approx(1.0)
    assert edge_steepness(soft, art()) < 0.6
    assert flatness(art(), art()) == pytest.approx(1.0)
    noisy = art() + 0.1 * torch.randn(art().shape, generator=torch.Generator().manual_seed(0))
    assert flatness(noisy, art()) < 0.2


def test_whites_and_corners_are_told_in_levels() -> None:
    grey = art().clamp(max=1.0 - 2.0 * 10.0 / 255.0)  # ten levels darker where it is white
    assert off_white(art(), art()) == (0.0, 0.0)
    assert off_white(grey, art()) == pytest.approx((10.0, 10.0), abs=1e-3)
    spot = art()
    spot[:, :8, :8] -= 2.0 * 40.0 / 255.0
    everywhere, corners = off_white(spot, art())
    assert corners == pytest.approx(10.0, abs=1e-3)  # one of four
    assert 0.0 < everywhere < 0.2


def test_grounds_are_told_by_their_edges() -> None:
    blue = torch.tensor([-0.5, 0.0, 0.9])[:, None, None].expand(3, 64, 64).clone()
    drawn = blue.clone()
    drawn[:, 20:40, 20:40] = 1.0  # a thing
    assert ground_error(drawn, blue) == 0.0
    assert ground_error(drawn + 2.0 * 5.0 / 255.0, blue) == pytest.approx(5.0, abs=1e-3)


def test_all_measures_of_some_drawings() -> None:
    some = similarity([art(), art()], [art(), art()])
    assert (some.prompts, some.psnr, some.psnr_tenth) == (2, quality.BEST, quality.BEST)
    assert (some.edges, some.flatness, some.white, some.corners) == (1.0, 1.0, 0.0, 0.0)
