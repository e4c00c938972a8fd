"""Templates in the dialect of dynamic prompts, against that package's own results."""

from collections import Counter
from pathlib import Path

import pytest

from txt2img.errors import BadRequest
from txt2img.request.request import Request
from txt2img.request.wildcards import Wildcards

SEEDS = 400


@pytest.fixture
def lists(folder: Path) -> Wildcards:
    """Lists of colours and, in a folder, of animals."""
    Path("w/animals/wild").mkdir(parents=True)
    Path("w/colour.txt").write_text("red\nblue\n# a comment\ngreen\n")
    Path("w/weighted.txt").write_text("8::gold\n2::silver\n0::lead\n")
    Path("w/nested.txt").write_text("{dark|pale} __colour__  # the shade\nplain\n")
    Path("w/animals/pets.txt").write_text("cat\ndog\n")
    Path("w/animals/wild/big.txt").write_text("bear\n")
    return Wildcards(Path("w"))


def prompts(lists: Wildcards, template: str, seeds: int = SEEDS) -> list[str]:
    """What a template becomes under several seeds, without superfluous spaces."""
    found = (lists.resolve(Request(template, seed=seed)).prompt for seed in range(seeds))
    return [" ".join(prompt.split()) for prompt in found]


TEMPLATES = [
    "a cat",
    "I love {bread|butter}",
    "I love {bread|butter} and {jam|honey}",
    "{red|green|blue} square, {big|small}",
    "{2$$red|green|blue}",
    "{2$$red|green|blue} cat",
    "a {3$$red|green|blue} cat",
    "{1-2$$red|green|blue}",
    "{0-1$$red|green}",
    "{0$$red|green} cat",
    "{2-1$$red|green}",
    "{-2$$a|b|c}",
    "{2-$$a|b|c}",
    "{5$$a|b}",
    "{1-2$$ and $$bread|butter|jam}",
    "{2$$ and $$bread|butter|jam} on toast",
    "{1-3$$, $$a|b|c}",
    "{2$$, $$a|b|c}",
    "{2$$|$$a|b|c}",
    "{ 2$$ - $$a|b|c}",
    "{0.7::a|b}",
    "{3::red|2::green|blue} ball",
    "{2$$3::red|2::green|blue}",
    "{.5::a|5.::b}",
    "{0.5::a}",
    "{a|{b|c}}",
    "{a|{b|{c|d}}} e",
    "{2$$a|{b|c}|d}",
    "{2$$ and $$a|{2$$+$$b|c}}",
    "{|very} red",
    "{red|} cup",
    "a {red|\n blue} cup",
    "{~red|green}",
    "{~2$$ and $$a|b|c}",
    "a __colour__ cup",
    "__colour__ and __colour__",
    "{__colour__|white} cup",
    "{2$$__colour__}",
    "{2$$ and $$__colour__}",
    "{1-2$$__colour__}",
    "{2$$__colour__|white}",
    "{big|small} {__animals/pets__|fish}",
    "a __animals/*__",
    "__animals/**/*__",
    "__animals/wild/b*__ here",
    "__animals/p?ts__",
    "__**/big__",
    "__nested__ cup",
    "{__nested__|clear}",
    "{a|b} # a comment",
    "# a comment\n{a|b}",
    "{a|b} // a comment",
    "{a|b} /* a comment */ c",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_results_are_those_of_dynamic_prompts(lists: Wildcards, template: str) -> None:
    dynamicprompts = pytest.importorskip("dynamicprompts.generators")
    manager = pytest.importorskip("dynamicprompts.wildcards").WildcardManager(Path("w"))
    generator = dynamicprompts.CombinatorialPromptGenerator(manager)
    expected = {" ".join(prompt.split()) for prompt in generator.generate(template)}
    assert set(prompts(lists, template)) == expected


def test_two_choices_of_one_list_differ(lists: Wildcards) -> None:
    pairs = set(prompts(lists, "{2$$ and $$__colour__|__colour__}"))
    colours = ("red", "blue", "green")
    assert pairs == {f"{one} and {other}" for one in colours for other in colours if one != other}


def test_weights_decide_how_often(lists: Wildcards) -> None:
    counts = Counter(prompts(lists, "{0.9::red|0.1::blue}", 2000))
    assert 1740 < counts["red"] < 1860  # 1800, give or take 4.5 sigma
    counts = Counter(prompts(lists, "__weighted__", 2000))
    assert 1520 < counts["gold"] < 1680 and counts["gold"] + counts["silver"] == 2000


def test_samplers_choose_at_random_or_in_turn(lists: Wildcards) -> None:
    assert set(prompts(lists, "__~colour__")) == {"red", "blue", "green"}
    assert prompts(lists, "__@colour__", 4) == ["red", "blue", "green", "red"]
    assert prompts(lists, "{@a|b} c", 3) == ["a c", "b c", "a c"]


@pytest.mark.parametrize("text", ["{masterpiece}", "{@_@} face", "{ a }", "a $$ b"])
def test_braces_without_choices_are_text(lists: Wildcards, text: str) -> None:
    assert lists.resolve(Request(text, seed=1)).prompt == text


def test_a_backslash_keeps_a_number_sign(lists: Wildcards) -> None:
    assert lists.resolve(Request(r"a \# b", seed=1)).prompt == "a # b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a ${x=red} b", "at character 3: variables are not supported"),
        ("a ${x} b", "at character 3: variables are not supported"),
        ("a __colour(x=1)__", "at character 3: a list takes no variables"),
        ("__a{b|c}__", "at character 1: no choices within a list's name"),
        ("%{a$$b}", "character 4 needs a number before it"),
        ("{a$$b|c}", "character 3 needs a number before it"),
        ("{$$a|b}", "character 2 needs a number before it"),
        ("{!a|b}", "at character 1: combinatorial choices are not supported"),
        ("a __!colour__", "at character 3: combinatorial choices are not supported"),
        ("{-1::a|b}", "the weight .* at character 2 must be"),
        ("{0::a|0::b}", "all weights are 0 in the braces at character 1"),
        ("__animals/x*__", "no list"),
        ("__pets__", "did you mean __animals/pets__"),
        ("__bad__", "line 2: .* at character 1: variables"),
    ],
)
def test_what_is_not_supported_is_an_error_with_its_place(
    lists: Wildcards, text: str, message: str
) -> None:
    Path("w/bad.txt").write_text("fine\n${x}\n")
    with pytest.raises(BadRequest, match=message):
        lists.resolve(Request(text, seed=1))
