"""What of a prompt may be meant otherwise than it is read."""

import pytest

from txt2img.errors import BadRequest
from txt2img.request import Compat, Request
from txt2img.request.compat import RULES
from txt2img.request.lint import prompt_warnings
from txt2img.request.prompt_syntax import edits, split_and


def of(
    prompt: str, compat: Compat | None = None, negative: str = "", cfg: float = 7.0
) -> list[str]:
    """The lines for a prompt that is drawn in ten steps."""
    return prompt_warnings(Request(prompt, negative=negative, steps=10, cfg=cfg, compat=compat))


@pytest.mark.parametrize(
    "prompt",
    [
        "a red apple, 3d emoji",
        "(a cat:1.2), [soft], ((b)) \\( c \\) :-D it's 5:30 in <paris>",
        "[cat:dog:0.5] [a|b] BREAK a coffee break AND fog :0.4",
        "_init_ {x}, a_b_c, rock and roll, a<b",
    ],
)
def test_what_is_read_as_it_is_meant_has_no_line(prompt: str) -> None:
    assert of(prompt) == []


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a (cat", "prompt, character 3: ( is never closed; all after it counts 1.1 times"),
        ("a cat)", "prompt, character 6: ) closes nothing and is read as text"),
        ("[[a] b", "prompt, character 1: [ is never closed; all after it counts 1/1.1 times"),
        ("(red:5)", 'prompt: "red" counts 5 times; 0.5 … 1.5 is usual'),
        ("((a:2):2) b", 'prompt: "a" counts 4 times; 0.5 … 1.5 is usual'),
        ("(a:-1)", 'prompt: "a" counts -1 times; 0.5 … 1.5 is usual'),
        ("a, break, b", "prompt, character 4: break is a word; BREAK begins a new chunk"),
        (
            "[fog:1.2]",
            "prompt: an edit at 1.2 of 10 steps never happens; for a weight write (word:1.2)",
        ),
        ("[a:b:12]", "prompt: an edit at 12 of 10 steps never happens"),
        ("[a:b:0]", "prompt: an edit at 0 of 10 steps happens before the first"),
        ("x <hypernet:n:1>", 'prompt: "<hypernet:n:1>" does nothing here and is read as text'),
        ("x <lora:n", 'prompt: "<lora:n" does nothing without its > and is read as text'),
        (
            "a {red|blue} cat",
            'prompt: "{red|blue}" is read as text; --wildcards FOLDER fills it in',
        ),
        (
            "a __colour__ cat",
            'prompt: "__colour__" is read as text; --wildcards FOLDER fills it in',
        ),
    ],
)
def test_each_pitfall_of_our_own_grammar_has_its_line(prompt: str, line: str) -> None:
    assert of(prompt) == [line]


@pytest.mark.parametrize("compat", RULES)
def test_long_runs_of_one_sign_are_looked_through_in_little_time(compat: Compat | None) -> None:
    for run in (
        *("{" + "|" * 60_000, "[" + ":" * 60_000, "[" + "|" * 60_000, "((" * 30_000 + "a"),
        *("[[" * 30_000 + "a", "(" + "BREAK " * 10_000, "a" * 60_000 + "(", "\n" * 60_000 + "("),
        *("(a:" + " " * 60_000, "(a:" + "1" * 60_000, "__" + "a" * 60_000, "<lora:" * 10_000),
    ):
        of(run, compat)


def test_an_empty_prompt_is_told() -> None:
    line = "prompt: it is empty; what is drawn is left to the model and the seed"
    assert of("") == of(" \n") == [line]


@pytest.mark.parametrize(
    ("compat", "prompt", "part"),
    [
        (Compat.DIFFUSERS, "(red:1.3) apple", '"(red:1.3)" is read as text by diffusers\'s'),
        (Compat.DIFFUSERS, "((red)) apple", '"((red))" is read as text'),
        (Compat.DIFFUSERS, "a BREAK b", "BREAK is read as a word"),
        (Compat.INVOKEAI, "a cat++ sits", '"cat++" is compel\'s weight'),
        (Compat.INVOKEAI, "a (cat)1.3", '"(cat)1.3" is compel\'s weight'),
        (Compat.COMFYUI, "a [cat] sits", '"[cat]" is read as text by comfyui\'s'),
        (Compat.COMFYUI, "a (cat", "( is never closed; it is read as text"),
        (Compat.COMFYUI, "a AND b", "AND is read as a word by comfyui's"),
        (Compat.SDCPP, "[a:b:0.5]", '"[a:b:0.5]" is read as text by sdcpp\'s'),
        (Compat.A1111, "meet at 10:30", "is a weight of 30 for all of it, as in A1111"),
        (Compat.A1111, "colour #ff00aa", "A1111 drops #"),
        (Compat.A1111, "a | b | [cat:dog:0.5]", '"[cat:dog:0.5]" is text, because of a bar'),
        (Compat.A1111, "[cat|dog] (a|b)", '"[cat|dog]" is text'),
        (Compat.A1111, "(a BREAK b:1.2)", "BREAK within brackets"),
    ],
)
def test_each_program_has_pitfalls_of_its_own(compat: Compat, prompt: str, part: str) -> None:
    [line] = of(prompt, compat)
    assert part in line
    assert part not in " ".join(of(prompt))


def test_the_negative_prompt_has_its_own_lines() -> None:
    assert of("x", negative="a AND b <lora:n:1>") == [
        "negative prompt: AND is read as a word",
        'negative prompt: "<lora:n:1>" does nothing in it and is read as text',
    ]


def test_what_cannot_be_read_is_an_error() -> None:
    with pytest.raises(BadRequest, match="is no weight"):
        of("(a:1.2.3)")


def test_a_line_is_short_and_safe_on_a_terminal() -> None:
    [line] = of(f"({'x' * 10_000}\x1b[2J:9)")[:1]
    assert len(line) < 200 and "\x1b" not in line


def test_edits_are_found_within_each_other() -> None:
    whens = [edit.when for edit in edits("[a:[b:c:0.7]:3] [x|[y::5]] (z:1.2)")]
    assert sorted(whens) == ["0.7", "3", "5"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a cat", [(1.0, "a cat")]),
        ("a cat AND a dog", [(1.0, "a cat "), (1.0, " a dog")]),
        ("a cat :1.2 AND a dog : .5 ", [(1.2, "a cat"), (0.5, " a dog")]),
        ("a AND b:-1", [(1.0, "a "), (-1.0, " b")]),
        ("meet at 10:30", [(1.0, "meet at 10:30")]),
        ("SAND AND b", [(1.0, "SAND "), (1.0, " b")]),
    ],
)
def test_and_parts_a_prompt(text: str, parts: list[tuple[float, str]]) -> None:
    assert split_and(text) == parts


def test_a1111_takes_a_number_at_the_end_for_a_weight_without_and() -> None:
    assert split_and("meet at 10:30", trailing_weight=True) == [(30.0, "meet at 10")]
    assert split_and("a cat", trailing_weight=True) == [(1.0, "a cat")]


def test_a_number_to_be_avoided_may_be_meant_as_a_count() -> None:
    assert of("a cat", negative="4") == [
        "negative prompt: it is a number; --count 4 draws so many pictures"
    ]
    assert of("a cat", negative="4 legs") == []


def test_a_negative_prompt_without_guidance_is_told() -> None:
    told = ["negative prompt: at cfg 1 it has no effect"]
    assert of("a cat", negative="blurry", cfg=1.0) == told
    assert of("a cat", negative=" ", cfg=1.0) == of("a cat", negative="blurry", cfg=1.5) == []
    assert of("a cat AND a dog", negative="blurry", cfg=1.0) == []


def test_a_strength_of_no_step_is_told() -> None:
    values = {"prompt": "x", "image": "a.png", "steps": 4}
    told = prompt_warnings(Request.from_json(values | {"strength": 0.2}))
    assert told == ["strength 0.2 of 4 steps is none: the picture stays as it is"]
    assert not prompt_warnings(Request.from_json(values | {"strength": 0.25}))
