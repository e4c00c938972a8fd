"""Scores of scenes: what is there is seen, what is missing or misplaced is missed."""

from dataclasses import replace

import pytest
from PIL import Image, ImageDraw
from torch import Tensor

from txt2img.train.data import Layer, Row, to_pixels
from txt2img.train.default_model.captions import BACKGROUNDS, hexadecimal
from txt2img.train.default_model.scene_score import (
    SceneScore,
    blobs,
    grounds,
    layer_pixels,
    nearest,
    score,
    shares,
)

CONCEPTS = {"r.png": "red", "b.png": "blue"}


class Eye:
    """Names a picture by its strongest colour in the middle, as a classifier would."""

    def names(self, pixels: Tensor) -> list[str]:
        middle = pixels[..., 24:40, 24:40].mean(dim=(2, 3))
        return [["red", "green", "blue"][n] for n in middle.argmax(dim=1).tolist()]


def scene(colours: dict[tuple[int, int], str], ground: str = "#ffffff") -> Image.Image:
    """Discs of 40 pixels around places of a picture of 128."""
    image = Image.new("RGB", (128, 128), ground)
    for (x, y), colour in colours.items():
        ImageDraw.Draw(image).ellipse((x - 20, y - 20, x + 20, y + 20), fill=colour)
    return image


PAIR = Row(
    (Layer("r.png", 0.0, 0.25, 0.5), Layer("b.png", 0.5, 0.25, 0.5)), ("x",), (1.0,), kind="beside"
)


def scored(row: Row, image: Image.Image) -> SceneScore:
    return score(Eye(), row, 0, image, CONCEPTS)  # type: ignore[arg-type]


def test_things_must_be_where_they_were_asked_for() -> None:
    right = scene({(32, 64): "red", (96, 64): "blue"})
    swapped = scene({(32, 64): "blue", (96, 64): "red"})
    assert scored(PAIR, right).right
    assert not scored(PAIR, swapped).things


def test_a_thing_in_another_colour_is_known_by_its_own() -> None:
    turned = replace(PAIR, layers=(Layer("r.png", 0.0, 0.25, 0.5, hue=1 / 3),))
    image = scene({(32, 64): "#00ff00"})
    assert scored(turned, image).things
    assert layer_pixels(image, turned.layers[0])[:, 32, 32].tolist() == pytest.approx(
        [1, -1, -1], abs=0.1
    )


def test_the_ground_is_read_from_the_corners() -> None:
    blue, yellow = hexadecimal("blue"), hexadecimal("yellow")
    plain = replace(PAIR, background=(blue,))
    fading = replace(PAIR, background=(yellow, blue))
    discs = {(32, 64): "red", (96, 64): "blue"}
    on_blue = scene(discs, blue)
    assert scored(plain, on_blue).ground and not scored(fading, on_blue).ground
    assert not scored(PAIR, on_blue).ground
    half = scene({}, blue)
    half.paste(yellow, (0, 0, 128, 64))
    assert grounds(to_pixels(half)) == (yellow, blue)


def test_a_ground_that_is_a_little_off_keeps_its_name() -> None:
    for name, (red, green, blue) in BACKGROUNDS.items():
        assert nearest((red + 4, max(green - 4, 0), blue)) == hexadecimal(name)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_things_that_do_not_touch_are_counted(count: int) -> None:
    places = [(24, 30), (100, 30), (64, 100)][:count]
    assert blobs(to_pixels(scene(dict.fromkeys(places, "red"), "#20a040"))) == count


def test_things_that_touch_and_specks_are_not_counted() -> None:
    image = scene({(40, 64): "red", (70, 64): "blue"})
    image.putpixel((120, 8), (0, 0, 0))
    assert blobs(to_pixels(image)) == 1


def test_only_counts_are_counted() -> None:
    image = scene({(32, 64): "red", (96, 64): "blue", (64, 16): "red"})
    assert scored(PAIR, image).right
    assert not scored(replace(PAIR, kind="count"), image).right


def test_shares_are_of_all_and_of_each_kind() -> None:
    parts = [("count", True), ("count", False), ("ground", True), ("ground", True)]
    found = [SceneScore("x", 0, kind, True, True, right) for kind, right in parts]
    assert shares(found) == {"all": 0.75, "count": 0.5, "ground": 1.0}
    assert shares([]) == {}
