"""Captions: they name the thing, its style and its ground as people would, and little else."""

import random
import re

import pytest

from txt2img.train.default_model import captions
from txt2img.train.default_model.captions import Row, rows
from txt2img.train.default_model.icons import STYLES
from txt2img.train.default_model.names import Names

FLUENT, NOTO = STYLES["fluent"], STYLES["noto"]
OWL = Names("owl", ("barn owl",), ("night bird",))
KEYWORDS = {
    "emojis": {
        "apple": {"keywords": ["fruit", "Dog", "x-1"], "skins": [{"unified": "1F34E-FE0F"}]},
        "dog": {"keywords": ["puppy", "animal_friend"], "skins": [{"unified": "1f415"}]},
    }
}


def owl_rows(grounds: float = 0.0, seed: int = 0, **options: object) -> list[Row]:
    given = {"style": NOTO, "keywords": [], "colour": None, **options}
    return list(rows("noto/owl.webp", OWL, grounds=grounds, seed=seed, **given))  # type: ignore[arg-type]


def test_the_usual_name_and_style_come_first_and_most_often() -> None:
    [row] = owl_rows()
    assert row["text"][0] == "owl, noto emoji"
    assert row["weights"][0] == max(row["weights"]) > 0.2
    assert sum(row["weights"]) == pytest.approx(1, abs=5e-3)


def test_every_name_is_said_and_no_caption_twice() -> None:
    [row] = owl_rows()
    assert {f"{name}, noto emoji" for name in OWL.all} <= set(row["text"])
    assert len(set(row["text"])) == len(row["text"]) == len(row["weights"])


def test_every_caption_names_the_thing_and_its_style() -> None:
    styles = re.compile("|".join((NOTO.words, *NOTO.synonyms)))
    for seed in range(30):
        for text in owl_rows(seed=seed)[0]["text"]:
            assert re.search("owl|night bird", text)
            assert styles.search(text)


def test_a_prompt_without_a_style_gets_the_usual_one() -> None:
    texts = [text for seed in range(10) for text in owl_rows(seed=seed, style=FLUENT)[0]["text"]]
    assert "an owl" in texts and "owl" in texts


def test_captions_on_a_colour_all_say_the_colour() -> None:
    for row in owl_rows(5.0)[1:]:
        [colour] = [
            name for name in captions.BACKGROUNDS
            if captions.hexadecimal(name) == row["background"]
        ]  # fmt: skip
        assert row["text"][0] == f"owl, noto emoji, on {captions.with_article(colour)} background"
        assert all(colour in text for text in row["text"])


def test_words_without_meaning_come_and_go() -> None:
    texts = [text for seed in range(40) for text in owl_rows(seed=seed)[0]["text"]]
    words = captions.words_in(texts)
    assert len(words & set(captions.ignored_words())) > 40
    idle = sum(any(f", {end}" in text for end in captions.ENDINGS) for text in texts)
    assert 0.05 < idle / len(texts) < 0.3


def test_a_colour_of_its_own_is_said_now_and_then() -> None:
    texts = [t for seed in range(20) for t in owl_rows(seed=seed, colour="brown")[0]["text"]]
    said = sum("brown " in text for text in texts)
    assert 0.02 < said / len(texts) < 0.2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ant", "an ant"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("ufo", "a ufo"),
        ("ewe", "a ewe"),
        ("x ray", "an x ray"),
        ("one piece swimsuit", "a one piece swimsuit"),
        ("grapes", "grapes"),
        ("bus", "a bus"),
        ("tennis", "a tennis"),
        ("1st place medal", "1st place medal"),
        ("a picture of", "a picture of"),
    ],
)
def test_articles(name: str, said: str) -> None:
    assert captions.with_article(name) == said


def test_keywords_leave_out_names_and_what_cannot_be_said() -> None:
    keywords = captions.keywords_by_code(KEYWORDS)
    codes = {"red-apple": "1f34e", "dog": "1f415", "elf": "1f9dd"}
    assert captions.own_keywords(codes, keywords, {"dog"}) == {
        "red-apple": ["fruit"],
        "dog": ["animal friend", "puppy"],
        "elf": [],
    }


def test_keywords_leave_out_what_many_share() -> None:
    codes = {f"thing {n}": str(n) for n in range(captions.SHARED + 1)}
    keywords = {code: {"thing"} for code in codes.values()}
    assert not any(captions.own_keywords(codes, keywords, set()).values())


def test_more_rows_have_other_colours_chosen_by_seed_and_file() -> None:
    def colours(seed: int) -> list[object]:
        return [row["background"] for row in owl_rows(3.0, seed)]

    assert colours(0)[0] == "#ffffff"
    assert len(set(map(str, colours(0)))) == 4
    assert colours(0) == colours(0) != colours(1)


def test_a_fraction_of_the_pictures_gets_one_colour_more() -> None:
    counts = [
        len(list(rows(f"3d/{n}.webp", OWL, FLUENT, [], None, 0.3, 0, count=2))) for n in range(1000)
    ]
    assert set(counts) == {1, 2}
    assert 250 < counts.count(2) < 350


def test_made_up_words_differ() -> None:
    rng = random.Random(0)
    assert len({captions.pseudo_word(rng) for _ in range(100)}) > 90
