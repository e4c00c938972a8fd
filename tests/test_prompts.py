"""A file of prompts is read as people write them."""

import io
import os
from pathlib import Path

import pytest

from txt2img import prompts
from txt2img.errors import BadFile, BadRequest
from txt2img.request import Request, Sampler

BASE = Request("", steps=9, seed=1)


def requests(text: str) -> list[Request]:
    """The requests of a file with that text."""
    return list(prompts.parse(text, BASE))


def one(line: str) -> Request:
    """The request of one line."""
    [request] = requests(line)
    return request


def test_blank_lines_and_comments_are_skipped() -> None:
    found = requests("\n a red apple \n\n# not this\n  # nor this\na #1 pear\r\n")
    assert [request.prompt for request in found] == ["a red apple", "a #1 pear"]


def test_a_line_has_options_of_its_own() -> None:
    request = one("a red apple --seed 7 --cfg 5 -W 64 --sampler Euler a --steps=3")
    assert request == Request(
        "a red apple", width=64, steps=3, cfg=5.0, sampler=Sampler.EULER_A, seed=7
    )


def test_what_a_line_leaves_open_is_the_command_lines() -> None:
    assert (one("x").steps, one("x").seed, one("x --seed 2").steps) == (9, 1, 9)


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog's bone",
        "rock 'n' roll",
        '5" disk',
        "a - b -- c",
        "t-shirt -w x",
        'say "hi" to \'em',
        "a\\b",
        "(a:1.2) [b]",
        "16:9",
        "x--seed 7",
    ],
)
def test_quotes_and_hyphens_in_a_prompt_are_the_prompts(prompt: str) -> None:
    assert one(prompt).prompt == prompt
    assert one(f"{prompt} --seed 7") == Request(prompt, steps=9, seed=7)


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ('"a red apple" --seed 7', "a red apple"),
        ("'a red apple' --seed 7", "a red apple"),
        (r'"a \"red\" apple" --seed 7', 'a "red" apple'),
        ('"a --cfg 3 apple" --seed 7', "a --cfg 3 apple"),
        ("--seed 7", ""),
        ('"" --seed 7', ""),
    ],
)
def test_a_prompt_may_be_quoted_as_a_whole(line: str, prompt: str) -> None:
    assert one(line) == Request(prompt, steps=9, seed=7)


@pytest.mark.parametrize(
    ("line", "negative"),
    [
        ("x -n blurry, dog's --seed 7", "blurry, dog's"),
        ('x --negative "a --cfg 3" --seed 7', "a --cfg 3"),
        ("x --negative='blurry' --seed 7", "blurry"),
        ('x -n "" --seed 7', ""),
        ("x -n 12 --seed 7", "12"),
    ],
)
def test_a_negative_prompt_may_have_many_words(line: str, negative: str) -> None:
    assert one(line) == Request("x", negative, steps=9, seed=7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x --ar 16:9", r'line 2: no option "--ar"'),
        ("x --seed", "line 2: --seed needs a value"),
        ("x --seed --cfg 3", "line 2: --seed needs a value"),
        ("x --seed abc", 'line 2: seed must be a whole number, got "abc"'),
        ("x --cfg nan", "line 2: cfg must be a finite number"),
        ("x --width 100", "line 2: width must be a multiple of 8"),
        ("x --model m", 'line 2: no option "--model"'),
    ],
)
def test_what_is_wrong_is_told_with_its_line(line: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        requests(f"fine\n{line}\n")


def test_json_lines_are_told_by_their_brace() -> None:
    found = requests('\n {"prompt": "a", "seed": 7}\n# no\n{"prompt": "b", "cfg": 5}\n')
    assert found == [
        Request("a", steps=9, seed=7),
        Request("b", steps=9, cfg=5.0, seed=1),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"seed": 7}', 'needs a "prompt"'),
        ('{"prompt": "a", "promt": 1}', "promt"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', "a key is there twice"),
        ('{"prompt": "a", "cfg": NaN}', "NaN is not a number"),
        ('{"prompt": "a", "model": "b"}', "one model"),
        ('{"prompt": "a\\ud800"}', "UTF-8"),
        ('{"prompt": "a"', "not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_bad_json_is_told_with_its_line(line: str, message: str) -> None:
    with pytest.raises(BadRequest, match=f"line 2: .*{message}"):
        requests('{"prompt": "a"}\n' + line)


def test_dash_is_standard_input() -> None:
    found = prompts.read("-", io.BytesIO("ä\n".encode()), BASE)
    assert [request.prompt for request in found] == ["ä"]


def test_a_byte_order_mark_is_no_part_of_the_prompt(folder: Path) -> None:
    Path("p.txt").write_bytes("\ufeffx\n".encode())
    assert prompts.read("p.txt", io.BytesIO(), BASE)[0].prompt == "x"


@pytest.mark.parametrize("content", [b"", b"\n \n# x\n"])
def test_a_file_without_prompts_is_refused(folder: Path, content: bytes) -> None:
    Path("p.txt").write_bytes(content)
    with pytest.raises(BadRequest, match="no prompts"):
        prompts.read("p.txt", io.BytesIO(), BASE)


def test_what_is_no_text_is_refused(folder: Path) -> None:
    Path("p.txt").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(BadFile, match="not UTF-8 text"):
        prompts.read("p.txt", io.BytesIO(), BASE)


def test_what_is_no_file_is_refused(folder: Path) -> None:
    os.mkfifo("pipe")
    for name, message in ((".", "regular file"), ("pipe", "regular file"), ("no", "no such file")):
        with pytest.raises(BadFile, match=message):
            prompts.read(name, io.BytesIO(), BASE)


def test_a_huge_line_is_refused_at_once() -> None:
    with pytest.raises(BadRequest, match="line 1: prompt has 10,000,000 characters"):
        requests("x" * 10_000_000)
