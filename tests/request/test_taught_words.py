"""Words that a model was never taught are told before it draws, with the nearest that it was."""

import json
from pathlib import Path
from shutil import copyfile

import pytest

from tests.conftest import Command
from txt2img.errors import BadFile
from txt2img.request.adapters import Embedding
from txt2img.request.request import Request
from txt2img.request.taught_words import (
    TaughtWords,
    from_captions,
    read_taught_words,
    warning,
)
from txt2img.weights.checkpoint import DEFAULT, open_checkpoint
from txt2img.weights.registry.find import SHIPPED

TABLE = TaughtWords(
    {"cat": ["cat face"], "house": ["house"], "leaf": ["maple leaf"], "blue": [], "emoji": []},
    frozenset({"cute"}),
    {"kitten": ["cat face"]},
)


def untaught(prompt: str, **fields: object) -> list[str]:
    return TABLE.untaught(Request(prompt, steps=10, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a cute blue cat, emoji", []),
        ("A CAT's house", []),
        ("3 cats", ["cats"]),
        ("(lighthouse:1.3) at dusk", ["lighthouse", "dusk"]),
        ("[cat:dog:0.5] BREAK [fog|house] AND cat :0.4", ["fog", "dog"]),
        ("cat \\(emoji\\)", []),
        ("猫", ["猫"]),
        ("dusk dusk", ["dusk"]),
    ],
)
def test_words_of_a_prompt_that_were_never_taught(prompt: str, words: list[str]) -> None:
    assert untaught(prompt) == words


def test_a_learnt_word_counts_as_taught() -> None:
    assert untaught("my-style cat", embeddings=(Embedding("my-style"),)) == []


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("cats", ["cat"]),
        ("leaves", ["leaf"]),
        ("kitten", ["cat face"]),
        ("kittens", ["cat face"]),
        ("huose", ["house"]),
        ("lighthouse", ["house"]),
        ("xylophone", []),
    ],
)
def test_the_nearest_word_is_a_form_a_synonym_a_spelling_or_a_part(
    word: str, near: list[str]
) -> None:
    assert TABLE.nearest(word) == near


def test_the_warning_is_one_line_with_advice() -> None:
    line = warning(TABLE, Request("a lighthouse at dusk", steps=1), "own", lambda: "ask another")
    assert line == (
        'prompt: the model was never taught "lighthouse" (nearest: house), "dusk"; nothing in the '
        "prompt names a thing it knows; txt2img models words own lists what it was; ask another"
    )
    assert warning(TABLE, Request("blue cat", steps=1), "own", lambda: "") == ""


def test_a_search_leads_from_words_to_things() -> None:
    assert TABLE.search("Cat") == {"cat": ["cat face"]}
    assert list(TABLE.search("le")) == ["leaf"]
    assert TABLE.search("dusk") == {}


def test_a_broken_table_is_told_by_its_place(tmp_path: Path) -> None:
    assert read_taught_words(tmp_path) is None
    for content in ('{"words": ["cat"]}', '{"words": {"cat": "x"}}', '{"ignored": [1]}', "[]", "{"):
        (tmp_path / "words.json").write_text(content)
        with pytest.raises(BadFile, match=r"words\.json"):
            read_taught_words(tmp_path)


def test_captions_alone_make_a_table_of_words() -> None:
    table = from_captions(["A cat, 3d emoji", "the dog's house"])
    assert table == {
        "words": {w: [] for w in ["3d", "a", "cat", "dog", "emoji", "house", "the"]},
        "ignored": [],
    }


def test_the_default_model_says_what_it_was_taught() -> None:
    table = read_taught_words(DEFAULT)
    assert table is not None and len(table.things) == 276
    tokens = open_checkpoint("default").tokenizers["text_encoder"].vocab
    named = [word for word, things in table.words.items() if things]
    assert all(f"{word}</w>" in tokens for word in named)  # the captions made the tokens too
    assert not set(table.near) & set(table.words)


def test_a_run_tells_it_before_drawing_and_fails_with_strict(command: Command) -> None:
    dry = ("a lighthouse at dusk", "--dry-run", "-o", "o/", "--seed", "1")
    told = command(*dry)
    assert told.code == 0 and 'never taught "lighthouse" (nearest: castle, house)' in told.err
    assert "txt2img models pull sd15" in told.err
    record = json.loads(command(*dry, "--json").out)
    assert [line for line in record["warnings"] if "lighthouse" in line]
    strict = command(*dry, "--strict")
    assert strict.code == 2 and "lighthouse" in strict.err
    assert "never taught" not in command("a red apple, 3d emoji", *dry[1:]).err


def test_a_drawn_picture_has_its_warnings_in_its_record(command: Command) -> None:
    done = command("astronaut", "--steps", "1", "--json", "-o", "a.png")
    assert done.code == 0 and "never taught" in done.err
    assert any("astronaut" in line for line in json.loads(done.out)["warnings"])


def test_a_lora_of_ones_own_may_teach_words_but_few_steps_teaches_none(command: Command) -> None:
    dry = ("astronaut", "--dry-run", "-o", "o/", "--lora")
    assert "never taught" in command(*dry, "few-steps").err
    copyfile(SHIPPED / "few-steps.safetensors", "mine.safetensors")
    assert "never taught" not in command(*dry, "mine.safetensors").err


def test_models_words_lists_and_searches(command: Command) -> None:
    listed = command("models", "words")
    assert len(listed.out.splitlines()) == 276 and "rocket" in listed.out.splitlines()
    assert "kitten\tcat face" in command("models", "words", "kitten").out.splitlines()
    both = command("models", "words", "default", "kitten", "--json")
    assert json.loads(both.out)["words"]["kitten"] == ["cat face"]
    nothing = command("models", "words", "lighthouse")
    assert nothing.code == 1 and "nearest: castle, house" in nothing.err
