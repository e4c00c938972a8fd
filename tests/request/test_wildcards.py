"""Choices in prompts: made by the seed, from lists in a folder and nowhere else."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from txt2img.errors import BadFile, BadRequest
from txt2img.request.request import Request
from txt2img.request.wildcards import CHOICES_MAX, COMBINATIONS_MAX, Wildcards


@pytest.fixture
def lists(folder: Path) -> Wildcards:
    """Two lists, one of them in a folder of its own and with a list's name in it."""
    Path("w/more").mkdir(parents=True)
    Path("w/colour.txt").write_text("red\n\n# not this\nblue\ngreen\n")
    Path("w/more/big-things.txt").write_text("__colour__ house\n{tall|old} tree\n")
    Path("outside.txt").write_text("secret")
    return Wildcards(Path("w"))


def prompts(lists: Wildcards, template: str, seeds: int = 60) -> set[str]:
    """All that a template becomes under several seeds."""
    return {lists.resolve(Request(template, seed=seed)).prompt for seed in range(seeds)}


def test_all_choices_are_made_and_no_other(lists: Wildcards) -> None:
    assert prompts(lists, "a {red|dark blue|} cup") == {"a red cup", "a dark blue cup", "a  cup"}
    assert prompts(lists, "a __colour__ cup") == {f"a {c} cup" for c in ("red", "blue", "green")}
    houses = {f"{colour} house" for colour in ("red", "blue", "green")}
    assert prompts(lists, "__more/big-things__") == houses | {"tall tree", "old tree"}
    assert prompts(lists, "__colour__{x}__colour__") == {
        f"{a}{{x}}{b}" for a in ("red", "blue", "green") for b in ("red", "blue", "green")
    }
    assert prompts(lists, "{a|{b|c}} d") == {"a d", "b d", "c d"}


def test_the_same_seed_makes_the_same_choices(lists: Wildcards) -> None:
    request = Request("{a|b|c|d} __colour__", "{e|f}", seed=7)
    assert lists.resolve(request) == Wildcards(Path("w")).resolve(request)
    # These are kept forever: pictures are repeated by their seeds.
    draws = [sha256(f"prompt 42 {i}".encode()).digest()[:8] for i in range(8)]
    digits = "".join(str(int.from_bytes(draw, "big") % 10) for draw in draws)
    assert lists.resolve(Request("{0|1|2|3|4|5|6|7|8|9}" * 8, seed=42)).prompt == digits


def test_choices_are_even(lists: Wildcards) -> None:
    many = "".join(lists.resolve(Request("{a|b|c}", seed=i)).prompt for i in range(900))
    assert all(240 < many.count(letter) < 360 for letter in "abc")  # 300, give or take 4 sigma


def test_template_and_prompt_are_both_kept(lists: Wildcards) -> None:
    found = lists.resolve(Request("a __colour__ cup", "{b|c}", seed=1))
    assert found.template == "a __colour__ cup" and found.negative_template == "{b|c}"
    assert "__" not in found.prompt and found.negative in ("b", "c")
    again = lists.resolve(replace(found, seed=1))
    assert again == found
    assert {lists.resolve(replace(found, seed=i)).prompt for i in range(60)} == prompts(
        lists, "a __colour__ cup"
    )


@pytest.mark.parametrize(
    "text", ["a cup", "(a:1.2) [b|c]", "snake_case __ x", "{a}", "{a} [b|c] {}", "_a_ _ b"]
)
def test_other_prompts_are_left_alone(lists: Wildcards, text: str) -> None:
    found = lists.resolve(Request(text, seed=1))
    assert (found.prompt, found.template) == (text, "")


def test_a_backslash_keeps_a_sign(lists: Wildcards) -> None:
    assert lists.resolve(Request(r"\{a\|b\} \__x\__ \(c\)", seed=1)).prompt == r"{a|b} __x__ \(c\)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__color__", "did you mean __colour__"),
        ("__no__", 'no list "no" for __no__ in "w"'),
        ("__empty__", "empty"),
        ("__loop__", "more than 20 deep"),
        ("{a|b", "a { without its }"),
        ("a} b", "a } without its { at character 2"),
        ("{" * 30 + "a|b" + "}" * 30, "more than 20 deep"),
        ("{a|b}" * 10_001, "16,384 are allowed"),
        ("__many__ " * 1_000, f"more than {CHOICES_MAX:,} choices"),
    ],
)
def test_what_cannot_be_resolved_is_told(lists: Wildcards, text: str, message: str) -> None:
    Path("w/empty.txt").write_text("# nothing\n")
    Path("w/loop.txt").write_text("__loop__")
    Path("w/many.txt").write_text("{a|b}" * 100)
    with pytest.raises(BadRequest, match=message.replace("{", r"\{")):
        lists.resolve(Request(text, seed=1))


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "more/../../outside", "more/..", "~/x", "a\\b"]
)
def test_no_prompt_names_a_file_outside(lists: Wildcards, name: str) -> None:
    assert lists.resolve(Request(f"__{name}__", seed=1)).prompt == f"__{name}__"


def test_lists_that_are_no_text_are_refused(lists: Wildcards) -> None:
    Path("w/bad.txt").write_bytes(b"\xff")
    with pytest.raises(BadFile, match="not UTF-8"):
        lists.resolve(Request("__bad__", seed=1))
    with pytest.raises(BadRequest, match="no folder"):
        Wildcards(Path("nowhere"))


@pytest.mark.parametrize(
    "template",
    [
        *("a {red|blue} {x|y}", "{2$$a|b|c}", "{1-2$$a|b|c}", "{2$$ and $$a|b|c}", "{2$$a|a|b}"),
        *(
            "{a|{b|c}} d",
            "{0.5::a|b}",
            "{0-1$$a|b}",
            "{a|b} and {a|b}",
            "__colour__ {cup|__colour__}",
        ),
        *("{2$$__colour__}", "__more/big-things__", "{2$$__colour__|x}", "plain (text:1.2)"),
    ],
)
def test_all_combinations_are_those_of_dynamic_prompts(lists: Wildcards, template: str) -> None:
    generators = pytest.importorskip("dynamicprompts.generators")
    manager = pytest.importorskip("dynamicprompts.wildcards.wildcard_manager")
    theirs = generators.CombinatorialPromptGenerator(manager.WildcardManager(Path("w").absolute()))
    ours = [one.prompt for one in lists.combinations(Request(template, seed=1))]
    assert set(ours) == set(theirs.generate(template, 1000))
    assert len(set(ours)) == len(ours)


def test_combinations_go_over_both_prompts_and_keep_the_templates(lists: Wildcards) -> None:
    found = lists.combinations(Request("a {b|c}", "{d|e}", seed=5))
    assert [(one.prompt, one.negative) for one in found] == [
        *(("a b", "d"), ("a b", "e"), ("a c", "d"), ("a c", "e"))
    ]
    assert {(one.template, one.negative_template) for one in found} == {("a {b|c}", "{d|e}")}


@pytest.mark.parametrize("template", ["{a|b}" * 14, "{1-$$" + "|".join("abcdefghij") + "}"])
def test_too_many_combinations_are_refused_at_once(lists: Wildcards, template: str) -> None:
    with pytest.raises(BadRequest, match=f"at most {COMBINATIONS_MAX:,}"):
        lists.combinations(Request(template, seed=1))
