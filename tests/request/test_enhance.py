"""Prompts as a language model reads them, its answers as prompts, and what is put back."""

import re
from contextlib import suppress

import pytest

from txt2img.errors import BadRequest, EnhanceFailed
from txt2img.request.enhance import (
    FOR_CLIP,
    FOR_PROSE,
    Enhancer,
    clean,
    for_taught_words,
    rewrite,
    take_out,
)
from txt2img.request.request import Request

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I cannot create content of this kind.",
    "I can\N{RIGHT SINGLE QUOTATION MARK}t assist.",
    "Sorry, that is not possible.",
    "As an AI language model, I must not.",
    "Unfortunately, I am unable to rewrite it.",
]


@pytest.mark.parametrize(
    ("prompt", "read", "written"),
    [
        ("a (red:1.3) apple", "a red apple", "a (red:1.3) apple, in the sun"),
        ("a ((red)) apple", "a red apple", "a ((red)) apple, in the sun"),
        ("an apple <lora:x:0.8>", "an apple", "a red apple, in the sun, <lora:x:0.8>"),
        ("a [green:red:0.5] apple", "a red apple", "a [green:red:0.5] apple, in the sun"),
        ("a [red|green] apple", "a red apple", "a [red|green] apple, in the sun"),
        ("a {red|green} apple", "a red apple", "a {red|green} apple, in the sun"),
        ("{2$$, $$red|b} apple", "red apple", "a {2$$, $$red|b} apple, in the sun"),
        ("__fruit/apple__", "apple", "a red __fruit/apple__, in the sun"),
        ("(best quality), apple", "best quality, apple", "(best quality), a red apple, in the sun"),
        (r"apple \(fruit\)", "apple fruit", r"a red apple, in the sun, \(fruit\)"),
        ("my-word apple", "apple", "my-word, a red apple, in the sun"),
        ("apple by my-word", "apple by", "a red apple, in the sun, my-word"),
        ("apple embedding:x", "apple", "a red apple, in the sun, embedding:x"),
        ("apple BREAK a (cat)", "apple", "a red apple, in the sun BREAK a (cat)"),
        ("apple :0.7 AND cat :0.3", "apple", "a red apple, in the sun :0.7 AND cat :0.3"),
        ("an ( apple", "an apple", "a red apple, in the sun"),
    ],
)
def test_syntax_is_taken_out_and_put_back(prompt: str, read: str, written: str) -> None:
    plain = take_out(prompt, ["my-word"])
    assert plain.text == read
    assert plain.put_back("a red apple, in the sun") == written


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("<think>The user\nwants…</think>\n\nred apple", "red apple"),
        ("wants…\n</think>red apple", "red apple"),  # the template began the thought
        ('"red apple"', "red apple"),
        ("“red apple”", "red apple"),
        ('"red" and "blue"', '"red" and "blue"'),
        ('a sign that says "OPEN"', 'a sign that says "OPEN"'),
        ("```text\nred apple\n```\nLet me know!", "red apple"),
        ("Here is the rewritten prompt:\n\nred apple", "red apple"),
        ("Sure! Here's a version: red apple", "red apple"),
        ("Certainly!\n\nred apple", "red apple"),
        ("**Enhanced prompt:** red apple", "red apple"),
        ("Prompt: 'red apple'\n\nLet me know if you want more.", "red apple"),
        ("red apple\n\nNote: I kept the colour.", "red apple"),
        ("- red apple\n- white ground", "red apple, white ground"),
        ("# red apple\nin the sun.\n\nA tree.", "red apple, in the sun. A tree."),
        ('{"prompt": "red apple"}', "red apple"),
        ("a (red:1.5) [apple] {a|b} <lora:evil:1>", "a red apple a b lora:evil"),
        ("red apple AND a cat BREAK b", "red apple and a cat break b"),
        ("red apple --ar 16:9 --v 6 # x", "red apple x"),
        ("red\x1b[31m apple\x00\u202e", "red 31m apple"),
        ("red apple :1.2", "red apple"),
        ("a picture of apples: red ones", "a picture of apples: red ones"),
        ("Here is a red apple", "Here is a red apple"),
        ("embedding:evil __list__ $$ a", "evil list a"),
    ],
)
def test_an_answer_becomes_a_prompt(answer: str, prompt: str) -> None:
    assert clean(answer) == prompt


@pytest.mark.parametrize(
    "answer", ["", "  \n", "...", "<think>still thinking", "<html><body>Busy", "a " * 5000]
)
def test_an_answer_that_is_no_prompt_is_refused(answer: str) -> None:
    with pytest.raises(EnhanceFailed):
        clean(answer)


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_no_prompt(answer: str) -> None:
    with pytest.raises(EnhanceFailed, match="it refuses"):
        clean(answer)


def test_long_answers_end_at_a_comma_within_the_words() -> None:
    text = clean(", ".join(["a red apple"] * 40), FOR_CLIP.words)
    assert text == ", ".join(["a red apple"] * 20)
    assert len(clean("word " * 400, FOR_PROSE.words).split()) == FOR_PROSE.words


@pytest.mark.parametrize("sign", ["(", "[a:", "{", "<", "\\", "__", " ", "( ", "a (b) ", "(((a)"])
def test_hostile_texts_come_to_an_end(sign: str) -> None:
    prompt = sign * (60_000 // len(sign))
    take_out(prompt)
    for answer in (prompt[:7900], prompt * 16):
        with suppress(EnhanceFailed):
            clean(answer)


def test_rewriting_is_asked_with_instructions_seed_and_temperature() -> None:
    asked: list[tuple[str, str, int, float]] = []

    def ask(*said: object) -> str:
        asked.append(said)  # type: ignore[arg-type]
        return "Prompt: a ripe apple"

    enhancer = Enhancer("m", "", FOR_CLIP.hash, 7, 0.2)
    assert rewrite("(apple:1.2)", FOR_CLIP, enhancer, (), ask) == "a ripe (apple:1.2)"
    assert asked == [(FOR_CLIP.text, "apple", 7, 0.2)]
    with pytest.raises(EnhanceFailed, match="no words"):
        rewrite("<lora:x>", FOR_CLIP, enhancer, (), ask)


def test_instructions_differ_by_what_reads_the_prompt() -> None:
    taught = for_taught_words(["red apple", "cat"], ["3d", "emoji", "white"])
    assert "red apple, cat" in taught.text and "3d emoji" in taught.text
    assert "twemoji" not in taught.text
    assert "60" in FOR_CLIP.text and "commas" in FOR_CLIP.text and "150" in FOR_PROSE.text
    hashes = {one.hash for one in (FOR_CLIP, FOR_PROSE, taught)}
    assert len(hashes) == 3 and all(re.fullmatch("[0-9a-f]{12}", digits) for digits in hashes)


def test_a_record_has_what_was_written_and_who_rewrote_it() -> None:
    request = Request("a ripe apple", written="apple", enhancer=Enhancer("m", "", "ab", 3, 0.5))
    values = request.to_json()
    assert values["written"] == "apple"
    assert values["enhancer"] == {
        "model": "m",
        "hash": "",
        "instructions": "ab",
        "seed": 3,
        "temperature": 0.5,
    }
    assert Request.from_json(values) == request
    assert not {"written", "enhancer"} & set(Request("x").to_json())


@pytest.mark.parametrize(
    "values",
    [
        *({"seed": -1}, {"seed": "1"}, {"temperature": 3}, {"temperature": float("nan")}),
        *({"instructions": "x y"}, {"hash": 5}, {"model": "a\x1b"}, {"key": "s"}),
    ],
)
def test_a_record_of_nonsense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="enhancer"):
        Request.from_json({"prompt": "x", "enhancer": values})
