"""Scenes: what is said of them is what is on them, and what is held out is not taught."""

import io
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from txt2img.train.default_model import scenes as module
from txt2img.train.default_model.icons import STYLES
from txt2img.train.default_model.names import Names, read_names
from txt2img.train.default_model.scenes import (
    CONTAINERS,
    GRID,
    KINDS,
    LARGE,
    MOUNTS,
    RIDERS,
    SETTINGS,
    SMALL,
    SPOTS,
    STANDS,
    WEATHER,
    Draft,
    Scene,
    Thing,
    above,
    beside,
    colour_of,
    counted,
    in_front,
    inside,
    main_hue,
    on,
    plural,
    recoloured,
    scenes,
    somewhere,
    visible_box,
)

STYLE = STYLES["fluent"]
USUAL = ("dog", "horse", "skateboard", "box", "chair", "astronaut", "beach", "rain", "robot")
THINGS = [
    Thing(Names(name), STYLE, f"3d/{name}.webp", box=(0.1, 0.2, 0.9, 0.8))
    for name in (*USUAL, *(f"thing {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))
]
APPLE = Thing(Names("red apple", ("apple",)), STYLE, "3d/red-apple.webp", hue=0.0)
PLUM = Thing(Names("plum"), STYLE, "3d/plum.webp", hue=0.8)


def many(count: int = 2000, seed: int = 0) -> list[Scene]:
    return list(scenes([*THINGS, APPLE, PLUM], count, seed))


def drafts(kind, count: int = 40) -> list[Draft]:  # type: ignore[no-untyped-def]
    """Drafts of one kind that chance allowed."""
    rng = random.Random(1)
    tried = [kind([*THINGS, APPLE, PLUM], rng) for _ in range(count)]
    return [draft for draft in tried if draft is not None]


def said(draft: Draft, count: int = 60) -> set[str]:
    """Phrases of a draft."""
    return {draft.phrase(random.Random(seed)) for seed in range(count)}


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


def test_the_visible_box_leaves_out_what_is_transparent() -> None:
    image = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(image).rectangle((10, 4, 29, 35), fill="#ff0000")
    out = io.BytesIO()
    image.save(out, "PNG")
    assert visible_box(out.getvalue()) == (0.25, 0.1, 0.75, 0.9)
    assert visible_box(disc("#00000000")) == (0.0, 0.0, 1.0, 1.0)


def test_a_thing_has_the_colour_that_its_hue_is_near_and_no_name_says() -> None:
    assert colour_of(PLUM.names, PLUM.hue) == "purple"
    assert colour_of(APPLE.names, APPLE.hue) is None
    assert colour_of(PLUM.names, 0.25) is None
    assert colour_of(PLUM.names, None) is None


def test_a_recoloured_thing_is_called_by_its_new_colour_and_turned_to_it() -> None:
    rng = random.Random(0)
    made = [draft for draft in (recoloured([PLUM], rng) for _ in range(60)) if draft]
    colours = {draft.combination[0] for draft in made}
    assert colours == {"red", "orange", "yellow", "green", "blue", "pink"}
    for draft in made:
        assert draft.canonical == f"{draft.combination[0]} plum"
        assert draft.layers[0]["hue"] > 0
        assert all(draft.combination[0] in phrase for phrase in said(draft, 10))
    assert recoloured([APPLE], rng) is None  # its name says a colour
    assert recoloured([THINGS[0]], rng) is None


@pytest.mark.parametrize(
    ("kind", "axis", "word", "back"),
    [(beside, "left", "left of", "right of"), (above, "top", "above", "below")],
)
def test_what_is_left_is_left_and_what_is_above_is_above(kind, axis, word, back) -> None:  # type: ignore[no-untyped-def]
    for draft in drafts(kind, 10):
        first, second = draft.layers
        assert first[axis] < second[axis]
        one, _, other = draft.combination
        assert draft.canonical == f"{one} {word} {other}"
        phrases = said(draft)
        assert any(re.search(f"{one} {word} .*{other}", phrase) for phrase in phrases)
        assert any(re.search(f"{other} {back} .*{one}", phrase) for phrase in phrases)


def test_what_stands_on_another_touches_it() -> None:
    """Its lowest visible part lies within the other's upper half, to a cell of the grid."""
    boxes = {thing.file: thing.box for thing in [*THINGS, APPLE, PLUM]}
    for draft in drafts(on):
        lower, upper = draft.layers  # painted in this order
        box = boxes[lower["file_name"]]
        assert (lower["side"], upper["side"]) == (LARGE, SMALL)
        top = lower["top"] + LARGE * box[1]
        middle = lower["top"] + LARGE * (box[1] + box[3]) / 2
        feet = upper["top"] + SMALL * boxes[upper["file_name"]][3]
        assert top - 1 / GRID < feet < middle + 1 / GRID


def test_what_is_ridden_is_ridden_by_who_can() -> None:
    riding = [draft for draft in drafts(on, 200) if draft.combination[1] == "riding"]
    assert riding
    for draft in riding:
        assert draft.combination[0] in RIDERS
        assert draft.combination[2] in MOUNTS
        assert any("riding" in phrase for phrase in said(draft))


def test_what_is_in_a_box_is_painted_behind_its_front() -> None:
    for draft in drafts(inside):
        thing, box = draft.layers
        assert box["file_name"] == "3d/box.webp"
        assert thing["top"] < box["top"] + LARGE


def test_what_is_in_front_is_painted_last() -> None:
    for draft in drafts(in_front, 10):
        assert draft.layers[-1]["file_name"] == f"3d/{draft.combination[0]}.webp".replace(
            "red apple", "red-apple"
        )


def test_places_fill_the_picture_and_weather_is_above() -> None:
    kinds = {draft.layers[0]["side"]: draft for draft in drafts(somewhere, 200)}
    assert kinds.keys() == {1.0, SMALL}
    assert not kinds[1.0].grounds  # a place is its own ground
    assert kinds[SMALL].layers[0]["top"] < kinds[SMALL].layers[1]["top"]


def test_things_are_as_many_as_said_and_do_not_touch() -> None:
    for draft in drafts(counted):
        number = ["two", "three", "four"].index(draft.combination[0]) + 2
        assert len(draft.layers) == number
    for spots in SPOTS.values():
        for n, one in enumerate(spots):
            for other in spots[:n]:
                assert max(abs(a - b) for a, b in zip(one, other, strict=True)) >= SMALL


def test_things_in_scenes_have_two_sizes_and_lie_on_the_grid() -> None:
    for scene in many(500):
        for layer in scene.row["layers"]:
            assert layer["side"] in (1.0, LARGE, SMALL)
            assert (GRID * layer["left"]).is_integer() and (GRID * layer["top"]).is_integer()


def test_the_lists_of_things_name_things_of_the_shipped_table() -> None:
    table = read_names(Path(module.__file__).with_name("concepts.txt"))
    usual = {names.name for names in table.values()}
    for some in (RIDERS, MOUNTS, STANDS, CONTAINERS, SETTINGS, WEATHER):
        assert set(some) <= usual


def test_every_kind_comes_up_and_stays_on_the_picture() -> None:
    made = many()
    assert {scene.kind for scene in made} == set(KINDS)
    for scene in made:
        for layer in scene.row["layers"]:
            assert min(layer["left"], layer["top"]) >= 0
            assert max(layer["left"], layer["top"]) + layer["side"] <= 1.0001


def test_backgrounds_are_said_and_never_hide_the_thing() -> None:
    for scene in many():
        colours = scene.row["background"]
        white = colours == "#ffffff"
        texts = scene.row["text"]
        assert all("background" in text or " on " in text for text in texts) or white
        assert ("background" in texts[0]) != white
        if scene.kind == "colour" and not white:
            assert scene.combination[0] not in texts[0].rpartition(" on ")[2]


def test_one_combination_in_sixteen_is_held_out_whatever_the_style() -> None:
    made = many()
    share = sum(scene.held_out for scene in made) / len(made)
    assert 0.03 < share < 0.1
    flat = [replace(thing, style=STYLES["flat"]) for thing in [*THINGS, APPLE, PLUM]]
    taught = {(s.kind, s.combination) for s in scenes(flat, 2000, 5) if not s.held_out}
    kept = {(s.kind, s.combination) for s in made if s.held_out}
    assert not taught & kept


def test_the_same_seed_gives_the_same_scenes() -> None:
    assert many(50) == many(50) != many(50, seed=1)


def test_one_thing_alone_makes_no_scene() -> None:
    assert list(scenes([APPLE], 5, 0)) == []
    assert list(scenes([], 5, 0)) == []
