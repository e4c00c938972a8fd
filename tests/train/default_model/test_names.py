"""The table of names: who is called what, and which words were taught."""

from pathlib import Path

import pytest

from txt2img.errors import BadFile, BadRequest
from txt2img.train.default_model import names as module
from txt2img.train.default_model.letters import STROKES
from txt2img.train.default_model.names import Names, nouns_covered, read_names, things_by_word

FOLDER = Path(module.__file__).parent
TABLE = """# animals

cat: cat, kitty; kitten, tabby
dog: dog; hound
police-car
"""


def table(tmp_path: Path, text: str = TABLE) -> dict[str, Names]:
    path = tmp_path / "concepts.txt"
    path.write_text(text, encoding="utf-8")
    return read_names(path)


def test_a_line_has_an_icon_its_names_and_kinds(tmp_path: Path) -> None:
    assert table(tmp_path) == {
        "cat": Names("cat", ("kitty",), ("kitten", "tabby")),
        "dog": Names("dog", (), ("hound",)),
        "police-car": Names("police car"),
    }


@pytest.mark.parametrize("line", ["cat: ", "cat; kitten", "cat: cat,kitty", "cat: a: b"])
def test_a_line_that_cannot_be_understood_is_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="line 2"):
        table(tmp_path, f"dog: dog\n{line}\n")


def test_two_things_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cat-face and kitten are both called 'kitten'"):
        table(tmp_path, "cat-face: cat face; kitten\nkitten: kitten\n")


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        read_names(tmp_path / "none.txt")


def test_the_usual_name_is_said_most_often(tmp_path: Path) -> None:
    weights = table(tmp_path)["cat"].weights
    assert weights[0] > 0.5 * sum(weights)
    assert len(weights) == 4


def test_words_lead_to_things_whole_names_first(tmp_path: Path) -> None:
    words = things_by_word([*table(tmp_path).values(), Names("car"), Names("cable car")])
    assert words["kitten"] == ["cat"]
    assert words["car"] == ["car", "cable car", "police car"]
    assert nouns_covered(["cat", "car", "horse", "dog"], words) == 0.75


def test_the_shipped_table_has_at_least_600_things_and_the_alphabet() -> None:
    names = read_names(FOLDER / "concepts.txt")
    assert len(names) >= 600
    assert {f"letter-{letter}" for letter in STROKES} <= names.keys()


def test_nine_of_ten_common_nouns_are_taught() -> None:
    lines = (FOLDER / "prompts" / "nouns.txt").read_text(encoding="utf-8").splitlines()
    nouns = " ".join(line for line in lines if not line.startswith("#")).split()
    words = things_by_word(read_names(FOLDER / "concepts.txt").values())
    assert len(nouns) == 232
    assert nouns_covered(nouns, words) > 0.95
