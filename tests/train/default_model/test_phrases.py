"""The prompts that were written down before training: how many, and what they ask for."""

import pytest

from txt2img.train.default_model.icons import STYLES
from txt2img.train.default_model.names import Names, read_names
from txt2img.train.default_model.phrases import (
    ARRANGEMENTS,
    FOLDER,
    arranged,
    read_nouns,
    read_prompts_file,
)
from txt2img.train.default_model.scenes import HUES, LARGE, SMALL, Thing

TABLE = {names.name: names for names in read_names(FOLDER.parent / "concepts.txt").values()}
THINGS = {
    name: Thing(names, STYLES["flat"], f"flat/{name}.webp", hue=0.3)
    for name, names in TABLE.items()
}


@pytest.mark.parametrize(
    ("name", "count"), [("aligned", 240), ("marks", 120), ("phrases", 100), ("cfg", 40)]
)
def test_prompts_are_as_many_as_were_written_down(name: str, count: int) -> None:
    prompts = read_prompts_file(name)
    assert len(prompts) == len({prompt.text for prompt in prompts}) == count


def test_there_are_232_nouns() -> None:
    assert len(set(read_nouns())) == 232


def test_the_aligned_prompts_are_of_all_styles_alike_and_of_shipped_icons() -> None:
    stems = read_names(FOLDER.parent / "concepts.txt")
    for style in STYLES.values():
        mine = [p for p in read_prompts_file("aligned") if p.target.startswith(f"{style.folder}/")]
        assert len(mine) == 60
        for prompt in mine:
            stem = prompt.target.rpartition("/")[2].removesuffix(".webp")
            assert prompt.text == f"{stems[stem].name}, {style.words}"


def test_every_phrase_can_be_painted() -> None:
    kinds = set()
    for prompt in read_prompts_file("phrases"):
        row = arranged(prompt.target, THINGS)
        assert row is not None, prompt
        assert all(layer.side in (1.0, LARGE, SMALL) for layer in row.layers)
        kinds.add(prompt.target.rpartition(": ")[0].partition(" ")[0])
    assert kinds >= ARRANGEMENTS.keys() - {"above"}


def test_a_phrase_of_what_the_data_lacks_has_no_picture() -> None:
    assert arranged("on: cat, box", {"cat": Thing(Names("cat"), STYLES["flat"], "a")}) is None
    assert arranged("at beach: cat", {"cat": Thing(Names("cat"), STYLES["flat"], "a")}) is None


def test_arrangements_are_those_of_the_scenes() -> None:
    row = arranged("on: cat, box", THINGS)
    assert row is not None
    lower, upper = row.layers
    assert (lower.file, upper.file) == ("flat/box.webp", "flat/cat.webp")
    assert upper.top < lower.top
    ground, colour = arranged("ground blue: lemon", THINGS), arranged("colour red: lemon", THINGS)
    assert ground is not None and colour is not None
    assert ground.background == ("#3b82f6",)
    assert colour.layers[0].hue == pytest.approx((HUES["red"] - 0.3) % 1.0)
