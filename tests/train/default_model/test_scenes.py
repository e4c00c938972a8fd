"""Scenes: what is said of them is what is on them, and what is held out is not taught."""

import io
import random

import pytest
from PIL import Image, ImageDraw

from txt2img.train.default_model.scenes import (
    KINDS,
    SPOTS,
    Scene,
    Thing,
    beside,
    counted,
    main_hue,
    plural,
    recoloured,
    scenes,
)

THINGS = [Thing(f"thing {n}", "3d emoji", f"3d/thing-{n}.webp") for n in range(40)]
APPLE = Thing("red apple", "3d emoji", "3d/red-apple.webp", hue=0.0)


def many(count: int = 2000, seed: int = 0) -> list[Scene]:
    return list(scenes([*THINGS, APPLE, APPLE], count, seed))


def disc(*colours: str) -> bytes:
    """A transparent picture of discs, side by side."""
    image = Image.new("RGBA", (32 * len(colours), 32))
    for place, colour in enumerate(colours):
        ImageDraw.Draw(image).ellipse((32 * place, 0, 32 * place + 31, 31), fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("colours", "hue"),
    [
        (["#ff0000"], 0.0),
        (["#00ff00"], 1 / 3),
        (["#ff0008"], 0.995),
        (["#ff0000", "#0000ff"], None),
    ],
)
def test_the_main_hue_is_of_nearly_all_coloured_parts(
    colours: list[str], hue: float | None
) -> None:
    found = main_hue(disc(*colours))
    if hue is None:
        assert found is None
    else:
        assert found is not None
        assert abs((found - hue + 0.5) % 1.0 - 0.5) < 0.02


def test_grey_and_empty_pictures_have_no_hue() -> None:
    assert main_hue(disc("#808080")) is None
    assert main_hue(disc("#00000000")) is None


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("star", "stars"),
        ("red apple", "red apples"),
        ("cherry", "cherries"),
        ("monkey", "monkeys"),
        ("bus", "buses"),
        ("fox", "foxes"),
        ("mouse", "mice"),
        ("grapes", None),
        ("house with garden", None),
    ],
)
def test_plurals(name: str, several: str | None) -> None:
    assert plural(name) == several


def test_a_recoloured_thing_is_called_by_its_new_colour_and_turned_to_it() -> None:
    rng = random.Random(0)
    told = [t for t in (recoloured([APPLE], rng) for _ in range(50)) if t]
    assert {t[0][0] for t in told} == {"orange", "yellow", "green", "blue", "purple", "pink"}
    for combination, layers, said in told:
        assert said[0][0] == f"{combination[0]} apple"
        assert layers[0]["hue"] > 0
    assert recoloured([THINGS[0]], rng) is None


def test_what_is_left_is_left_and_what_is_above_is_above() -> None:
    rng, seen = random.Random(1), set()
    for _ in range(20):
        told = beside(THINGS, rng)
        assert told is not None
        (one, word, other), (first, second), said = told
        seen.add(word)
        axis = "left" if word == "left of" else "top"
        assert first[axis] < second[axis]
        assert f"{one} {word} {other}" in [text for text, _ in said]
        back = "right of" if word == "left of" else "below"
        assert f"{other} {back} {one}" in [text for text, _ in said]
    assert seen == {"left of", "above"}


def test_things_are_as_many_as_said_and_do_not_touch() -> None:
    rng = random.Random(2)
    for _ in range(20):
        told = counted(THINGS, rng)
        assert told is not None
        (number, _), layers, _ = told
        assert len(layers) == ["two", "three", "four", "five"].index(number) + 2
    for middles, side in SPOTS.values():
        for n, one in enumerate(middles):
            for other in middles[:n]:
                assert max(abs(a - b) for a, b in zip(one, other, strict=True)) >= side


def test_every_kind_comes_up_and_stays_on_the_picture() -> None:
    made = many()
    assert {scene.kind for scene in made} == set(KINDS)
    for scene in made:
        for layer in scene.row["layers"]:
            assert min(layer["left"], layer["top"]) >= 0
            assert max(layer["left"], layer["top"]) + layer["side"] <= 1.0001


def test_backgrounds_are_said_and_never_hide_the_thing() -> None:
    for scene in many():
        white = scene.row["background"] == "#ffffff"
        assert all(("background" in text) != white for text in scene.row["text"])
        if scene.kind == "colour" and not white:
            assert scene.combination[0] not in scene.row["text"][0].rpartition(" on ")[2]


def test_one_combination_in_sixteen_is_held_out_whatever_the_style() -> None:
    made = many()
    share = sum(scene.held_out for scene in made) / len(made)
    assert 0.03 < share < 0.1
    flat = [Thing(t.name, "flat emoji", t.file, t.hue) for t in [*THINGS, APPLE, APPLE]]
    taught = {(s.kind, s.combination) for s in scenes(flat, 2000, 5) if not s.held_out}
    kept = {(s.kind, s.combination) for s in made if s.held_out}
    assert not taught & kept


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert many(50) == many(50) != many(50, seed=1)


def test_one_thing_alone_makes_no_scene() -> None:
    assert list(scenes([APPLE], 5, 0)) == []
    assert list(scenes([], 5, 0)) == []
