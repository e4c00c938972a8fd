"""Seamless pictures: where noise is moved in a circle, the picture is moved along, and no more."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from txt2img.pipeline import generate
from txt2img.pipeline.noise import fresh_noise
from txt2img.pipeline.preview import Previewer
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.fields import Tile
from txt2img.weights.model import Model

REQUEST = Request(
    "a cat", "dog", "m", 96, 64, 3, 4.0, sampler=Sampler.HEUN, schedule=Schedule.LINEAR, seed=42
)
CELLS = {Tile.X: (0, 4), Tile.Y: (2, 0), Tile.XY: (2, 6)}  # down, to the right
Draw = Callable[[Request, tuple[int, int]], np.ndarray]


def as_array(picture: Image.Image) -> np.ndarray:
    """A picture's levels, signed."""
    return np.asarray(picture).astype(int)


@pytest.fixture
def draw_moved(sd1_model: Model, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draws a request from its noise moved by so many cells."""

    def draw(request: Request, cells: tuple[int, int]) -> np.ndarray:
        def moved(*arguments):
            draw_noise = fresh_noise(*arguments)
            return lambda: draw_noise().roll(cells, (-2, -1))

        monkeypatch.setattr(generate, "fresh_noise", moved)
        [picture] = generate.images_of(sd1_model, [request])
        return as_array(picture)

    return draw


@pytest.mark.parametrize(
    ("tile", "more", "tiling"),
    [
        *((tile, {}, "off") for tile in CELLS),
        *((tile, {}, "on") for tile in CELLS),
        (Tile.XY, {"reuse": 2}, "off"),
        (Tile.XY, {"token_merging": 0.5}, "off"),
    ],
)
def test_a_picture_moves_with_its_noise(
    sd1_model: Model,
    draw_moved: Draw,
    monkeypatch: pytest.MonkeyPatch,
    tile: Tile,
    more: dict[str, object],
    tiling: str,
) -> None:
    monkeypatch.setattr(sd1_model.memory, "tiling", tiling)
    factor = sd1_model.vae.config.factor
    down, right = CELLS[tile]
    request = replace(REQUEST, tile=tile, **more)
    still, moved = draw_moved(request, (0, 0)), draw_moved(request, (down, right))
    back = np.roll(moved, (-factor * down, -factor * right), (0, 1))
    assert np.abs(back - still).max() <= 1
    plain = replace(request, tile=None)
    still, moved = draw_moved(plain, (0, 0)), draw_moved(plain, (down, right))
    back = np.roll(moved, (-factor * down, -factor * right), (0, 1))
    assert np.abs(back - still).max() > 10


@pytest.mark.parametrize("tile", list(CELLS))
def test_a_preview_is_seamless_too(sd1_model: Model, tile: Tile) -> None:
    previewer = Previewer(sd1_model, sd1_model.vae)
    *_, last = generate.sample(sd1_model, [REQUEST])
    factor, (down, right) = sd1_model.vae.config.factor, CELLS[tile]
    [still] = previewer.images(last.x0, tile)
    [moved] = previewer.images(last.x0.roll((down, right), (-2, -1)), tile)
    back = np.roll(as_array(moved), (-factor * down, -factor * right), (0, 1))
    assert np.abs(back - as_array(still)).max() <= 1
    [same] = previewer.images(last.x0)
    [decoded] = generate.decode(sd1_model, last.x0, replace(REQUEST, tile=None))
    assert (as_array(same) == as_array(decoded)).all()


def test_pictures_of_different_tiles_are_not_drawn_together() -> None:
    keys = {generate.batch_key(replace(REQUEST, tile=tile)) for tile in (None, *CELLS)}
    assert len(keys) == 4
