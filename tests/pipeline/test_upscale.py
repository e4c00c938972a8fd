"""Upscaling: pictures by Pillow or a model, latents by torch, with transparency and any scale."""

from collections import deque

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.upscalers import needs_spandrel, upscaler_file
from txt2img.errors import BadRequest
from txt2img.pipeline.upscale import passes, tile_size, upscale_image, upscale_latents
from txt2img.request.upscalers import Interpolation
from txt2img.system.device.device import Device
from txt2img.weights.upscaler import Upscaler, load_upscaler


def noise(mode: str, width: int = 90, height: int = 70) -> Image.Image:
    levels = np.random.default_rng(3).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(levels.squeeze())


def upscaled(
    image: Image.Image,
    by: Upscaler | Interpolation,
    size: tuple[int, int],
    tile: int | None = None,
) -> Image.Image:
    [last] = deque(upscale_image(image, by, size, tile), 1)
    assert last.image is not None
    return last.image


@pytest.fixture(scope="module")
def double() -> Upscaler:
    return load_upscaler(upscaler_file(2), Device(torch.device("cpu"), torch.float32))


@needs_spandrel
def test_tiles_give_the_picture_that_the_whole_gives(double: Upscaler) -> None:
    image = noise("RGB", 150, 100)
    whole, tiled = (np.array(upscaled(image, double, (300, 200), t), int) for t in (0, 64))
    assert np.abs(whole - tiled).max() <= 1


@needs_spandrel
def test_any_scale_is_reached_by_passes_and_lanczos(double: Upscaler) -> None:
    image = noise("RGB", 20, 16)
    once = upscaled(image, double, (40, 32), 0)
    assert np.array_equal(
        upscaled(image, double, (30, 24), 0), once.resize((30, 24), Image.Resampling.LANCZOS)
    )
    twice = upscaled(once, double, (80, 64), 0)
    assert np.array_equal(upscaled(image, double, (80, 64), 0), twice)
    assert [passes(double, (10, 10), (n, n)) for n in (5, 20, 21, 40, 500)] == [1, 1, 2, 2, 3]


@needs_spandrel
def test_transparency_is_kept_and_changes_no_colour(double: Upscaler) -> None:
    image = noise("RGBA")
    both = upscaled(image, double, (180, 140), 0)
    assert both.mode == "RGBA"
    colours = upscaled(image.convert("RGB"), double, (180, 140), 0)
    assert np.array_equal(both.convert("RGB"), colours)
    alpha = image.getchannel("A").resize((180, 140), Image.Resampling.LANCZOS)
    assert np.array_equal(both.getchannel("A"), alpha)


@needs_spandrel
def test_a_tile_fits_into_the_memory_that_is_free(
    double: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tile_size(double, 100) == 100
    for free, side in ((2**40, 256), (2**27, 256), (2**26, 128), (2**10, 64)):
        monkeypatch.setattr("txt2img.system.resources.available", lambda free=free: free)
        assert tile_size(double, None) == side


@needs_spandrel
def test_where_memory_runs_out_the_tiles_become_smaller(
    double: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = upscaled(noise("RGB", 150, 100), double, (300, 200), 0)
    run = Upscaler.__call__
    sides = []

    def short(self: Upscaler, pixels: torch.Tensor) -> torch.Tensor:
        sides.append(pixels.shape[-1])
        if pixels.shape[-1] > 80:
            raise MemoryError
        return run(self, pixels)

    monkeypatch.setattr(Upscaler, "__call__", short)
    tiled = upscaled(noise("RGB", 150, 100), double, (300, 200), 0)
    assert sides[:2] == [150, 75]
    assert np.abs(np.array(whole, int) - np.array(tiled, int)).max() <= 1


def test_what_is_too_large_is_refused_before_any_work() -> None:
    with pytest.raises(BadRequest, match="upscaled to 90,000x70,000 pixels; at most 268,435,456"):
        upscaled(noise("RGB"), Interpolation.LANCZOS, (90_000, 70_000))


@pytest.mark.parametrize(
    ("how", "mode", "antialias"),
    [
        ("Latent", "bilinear", False),
        ("Latent (antialiased)", "bilinear", True),
        ("Latent (bicubic)", "bicubic", False),
        ("Latent (bicubic antialiased)", "bicubic", True),
        ("Latent (nearest)", "nearest", False),
        ("Latent (nearest-exact)", "nearest-exact", False),
    ],
)
def test_latents_are_interpolated_as_a1111_does(how: str, mode: str, antialias: bool) -> None:
    x = torch.randn(1, 4, 8, 6)
    theirs = torch.nn.functional.interpolate(x, (13, 12), mode=mode, antialias=antialias)
    member = Interpolation.parse(how)
    assert member.label == how and member.of_latents
    assert torch.equal(upscale_latents(x, member, (13, 12)), theirs)
