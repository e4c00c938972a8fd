"""A picture upscaled in tiles is the picture, without seams, in a strip's memory."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from txt2img.models.tiling import UPSCALE_MARGIN as MARGIN
from txt2img.models.tiling import UPSCALE_OVERLAP as OVERLAP
from txt2img.models.tiling import tile_count, upscale_tiled

SCALE = 2


def network(pixels: Tensor) -> Tensor:
    """A blur that sees MARGIN pixels far, zeros around the picture, then twice the size."""
    side = 2 * MARGIN + 1
    kernel = torch.rand(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    blurred = functional.conv2d(pixels, kernel / kernel.sum((2, 3), True), padding=MARGIN, groups=3)
    return functional.interpolate(blurred, scale_factor=SCALE, mode="nearest")


def run(image: Tensor, tile: int) -> Tensor:
    out = torch.empty(3, SCALE * image.shape[1], SCALE * image.shape[2], dtype=torch.uint8)
    steps = [*upscale_tiled(network, image, out, tile)]
    assert steps == [*range(1, tile_count(image.shape[1:], tile) + 1)]
    return out


@pytest.mark.parametrize(("height", "width"), [(200, 150), (64, 65), (300, 70), (40, 300)])
def test_tiles_make_the_picture_that_no_tiles_make(height: int, width: int) -> None:
    noise = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=noise)
    whole, tiled = run(image, max(height, width)), run(image, 2 * OVERLAP)
    assert (whole.int() - tiled.int()).abs().max() <= 1  # the sums of floats are rounded


def test_a_network_that_looks_farther_leaves_no_seam() -> None:
    """Tiles that differ by a constant meet in a ramp as wide as their overlap."""
    count = 0

    def shaded(pixels: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return torch.full((1, 3, 2 * pixels.shape[2], 2 * pixels.shape[3]), 0.2 * count)

    out = torch.empty(3, 128, 400, dtype=torch.uint8)
    list(upscale_tiled(shaded, torch.zeros(3, 64, 200, dtype=torch.uint8), out, 64))
    assert out[0].unique().numel() > 20  # of levels between the tiles'
    step = 0.2 * 255 / (2 * (OVERLAP - 2 * MARGIN))
    assert out[0].int().diff(dim=1).abs().max() <= step + 1


def test_no_tile_is_larger_than_asked_and_results_are_clamped() -> None:
    sides = set()

    def bright(pixels: Tensor) -> Tensor:
        sides.update(pixels.shape[2:])
        return pixels.new_full((1, 3, 2 * pixels.shape[2], 2 * pixels.shape[3]), 7.0)

    out = torch.empty(3, 300, 220, dtype=torch.uint8)
    list(upscale_tiled(bright, torch.zeros(3, 150, 110, dtype=torch.uint8), out, 64))
    assert sides == {64} and bool((out == 255).all())
