"""Captions as people type them: names, style, background, and words without meaning.

Captions are drawn by chance from a small grammar, each row's from its own generator, so that the
same data set says the same.
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NotRequired, TypedDict

from txt2img.train.default_model.icons import Style, mapping, plain_code
from txt2img.train.default_model.names import Names

WHITE = "#ffffff"
BACKGROUNDS = {  # what captions call them → RGB
    "black": (16, 16, 16),
    "blue": (59, 130, 246),
    "brown": (139, 94, 60),
    "green": (52, 168, 83),
    "grey": (158, 158, 158),
    "orange": (245, 146, 46),
    "pink": (248, 165, 194),
    "purple": (142, 84, 202),
    "red": (222, 54, 48),
    "yellow": (250, 212, 62),
}
OPEN_SOUND = re.compile(r"[ai]|e(?!u|we)|o(?!ne )|u(?!ni|se|fo)|x ")  # "an owl", but "a unicorn"
HELD_OUT = 16  # one combination in so many is not taught
SHARED = 2  # a keyword that more concepts than this share says too little to be a caption
KEYWORDS = 3  # of a thing's keywords, as many are captions of it
CANONICAL = 0.25  # of the time a picture's first caption is drawn: "red apple, 3d emoji"

# Words that say nothing a small picture could show. They are put in by chance, to be ignored.
ADJECTIVES = (
    *("cute", "beautiful", "nice", "lovely", "pretty", "cool", "simple", "funny", "adorable"),
    *("awesome", "amazing", "realistic", "colorful", "colourful", "tiny", "little", "shiny"),
    *("modern", "fancy", "fantastic", "perfect", "great", "good", "real", "single", "new", "my"),
)
ENDINGS = (
    *("4k", "8k", "hd", "uhd", "masterpiece", "trending", "trending on artstation", "artstation"),
    *("high quality", "best quality", "highly detailed", "very detailed", "detailed", "sharp"),
    *("intricate", "high resolution", "hires", "professional", "award winning", "digital art"),
    *("concept art", "octane render", "unreal engine", "cinematic lighting", "soft lighting"),
    *("studio lighting", "volumetric lighting", "vivid colors", "vibrant", "clean", "centered"),
    *("isolated", "ultra detailed", "hyperrealistic", "photorealistic", "sharp focus", "bokeh"),
    *("dslr", "pixar style", "kawaii", "minimalist", "art", "design", "graphic", "no text"),
)
OPENINGS = (
    *("picture of", "a picture of", "image of", "an image of", "photo of", "a photo of"),
    *("drawing of", "a drawing of", "painting of", "draw", "draw me", "please draw", "show me"),
    *("make", "create", "generate", "i want", "a portrait of", "a render of", "a photograph of"),
)
SYLLABLES = "ba be bo chi da do fe fla gra gu ha ja kla ko lu ma mi nor pli qua ri sto ta vex wi zu"


class Placed(TypedDict):
    """One picture of several on a scene: see data.Layer."""

    file_name: str
    left: float
    top: float
    side: float
    hue: float
    mirrored: NotRequired[bool]


class Row(TypedDict):
    """One line of metadata.jsonl: a picture on one background, and its captions."""

    file_name: str
    text: list[str]
    weights: list[float]  # how often each caption is drawn; they add up to 1
    background: str | list[str]
    layers: NotRequired[list[Placed]]


# --- Emoji keywords ------------------------------------------------------------------------------


def keywords_by_code(emojis: object) -> dict[str, set[str]]:
    """Code points → keywords, of an emoji-mart data file, those that are plain words."""
    keywords_of: dict[str, set[str]] = {}
    for emoji in mapping(mapping(emojis).get("emojis")).values():
        skins, keywords = (mapping(emoji).get(key) for key in ("skins", "keywords"))
        if isinstance(skins, list) and skins and isinstance(keywords, list):
            plain = (str(word).lower().replace("_", " ") for word in keywords)
            code = plain_code(str(mapping(skins[0]).get("unified")))
            keywords_of[code] = {word for word in plain if is_word(word)}
    return keywords_of


def is_word(word: str) -> bool:
    """Whether a keyword is a plain word: letters alone, more than two."""
    return re.fullmatch(r"[a-z][a-z ]+[a-z]", word) is not None


def own_keywords(
    codes: Mapping[str, str], keywords: Mapping[str, set[str]], taken: set[str]
) -> dict[str, list[str]]:
    """Thing → keywords that few other things share, and that are nobody's name (`taken`).

    `codes` says which character each thing is.
    """
    owners: dict[str, int] = {}
    for code in codes.values():
        for word in keywords.get(code, ()):
            owners[word] = owners.get(word, 0) + 1
    return {
        thing: sorted(
            word for word in keywords.get(code, ()) if owners[word] <= SHARED and word not in taken
        )
        for thing, code in codes.items()
    }


# --- Phrases -------------------------------------------------------------------------------------


def is_plural(name: str) -> bool:
    """Whether a name is one of several things: "grapes", not "bus"."""
    return name.endswith("s") and not name.endswith(("ss", "us", "is"))


def with_article(name: str) -> str:
    """The name after its article; plurals ("grapes") and numbered names stay as they are."""
    if name[0].isdigit() or is_plural(name) or name.startswith(("a ", "an ", "the ")):
        return name
    return f"{'an' if OPEN_SOUND.match(name) else 'a'} {name}"


def pick_name(names: Names, rng: random.Random) -> str:
    """One of a thing's names, the usual one most often."""
    return rng.choices(names.all, names.weights)[0]


def noun_phrase(name: str, rng: random.Random, article: float = 0.5) -> str:
    """A name, perhaps after an article, sometimes after an adjective without meaning."""
    if rng.random() < 0.12:
        name = f"{rng.choice(ADJECTIVES)} {name}"
    chance = rng.random()
    if chance < 0.06 and not name[0].isdigit():
        return f"the {name}"
    return with_article(name) if chance < article else name


def pseudo_word(rng: random.Random) -> str:
    """An invented word: it teaches the model to ignore the tokens of unknown words."""
    return "".join(rng.choice(SYLLABLES.split()) for _ in range(rng.randint(2, 3)))


def on_ground(grounds: Sequence[str], rng: random.Random) -> str:
    """The words after a phrase that name its background; for white mostly none."""
    if not grounds:
        chance = rng.random()
        if chance > 0.1:
            return ""
        return ", white background" if chance < 0.03 else " on a white background"
    colour = " to ".join(grounds) + (" gradient" if len(grounds) > 1 and rng.random() < 0.3 else "")
    forms = (
        f" on {with_article(colour)} background",
        f", on {with_article(colour)} background",
        f", {colour} background",
        f" with {with_article(colour)} background",
        f" on {colour}",
    )
    return rng.choices(forms, (4.0, 3.0, 2.0, 1.0, 0.5))[0]


def sentence(phrase: str, style: Style, grounds: Sequence[str], rng: random.Random) -> str:
    """One way to ask for a phrase in a style on its ground, as a person would type it."""
    ground = on_ground(grounds, rng)
    plain = style.usual and rng.random() < 0.4  # no style is said
    if plain:
        opening = f"{rng.choice(OPENINGS)} " if rng.random() < 0.25 else ""
        text = f"{opening}{phrase}{ground}"
    else:
        word = style.words if rng.random() < 0.6 else rng.choice(style.synonyms)
        forms = (
            f"{phrase}, {word}{ground}",
            f"{phrase}{ground}, {word}",
            f"{with_article(word) if rng.random() < 0.4 else word} of {phrase}{ground}",
            f"{phrase} {word}{ground}",
            f"{word}, {phrase}{ground}",
        )
        text = rng.choices(forms, (5.0, 1.5, 2.0, 1.5, 0.5))[0]
    if rng.random() < 0.15:
        text += "".join(f", {word}" for word in rng.sample(ENDINGS, rng.randint(1, 3)))
    if rng.random() < 0.03:
        text += f", {pseudo_word(rng)}" if rng.random() < 0.5 else f" {pseudo_word(rng)}"
    return text


def captions_of(
    canonical: str,
    phrase: Callable[[random.Random], str],
    count: int,
    style: Style,
    grounds: Sequence[str],
    rng: random.Random,
) -> tuple[list[str], list[float]]:
    """The canonical caption first and `count` sentences about a phrase, with their weights."""
    ground = f", on {with_article(' to '.join(grounds))} background" if grounds else ""
    pairs = [(f"{canonical}, {style.words}{ground}", CANONICAL * count)]
    pairs += [(sentence(phrase(rng), style, grounds, rng), 1.0 - CANONICAL) for _ in range(count)]
    return weighed(pairs)


def weighed(pairs: Sequence[tuple[str, float]]) -> tuple[list[str], list[float]]:
    """Captions, each once, and their weights, which add up to 1."""
    merged: dict[str, float] = {}
    for text, weight in pairs:
        merged[text] = merged.get(text, 0.0) + weight
    total = sum(merged.values())
    return list(merged), [round(weight / total, 4) for weight in merged.values()]


# --- Rows ----------------------------------------------------------------------------------------


def held_out(*parts: str) -> bool:
    """Whether a combination is held out of training, to test whether words compose."""
    return zlib.crc32("|".join(parts).encode()) % HELD_OUT == 0


def hexadecimal(colour: str) -> str:
    """A background's colour as #rrggbb."""
    red, green, blue = BACKGROUNDS[colour]
    return f"#{red:02x}{green:02x}{blue:02x}"


def thing_phrases(
    names: Names, keywords: Sequence[str], colour: str | None
) -> Callable[[random.Random], str]:
    """A generator of phrases for one thing; `colour` is its own colour, if that has a name."""

    def phrase(rng: random.Random) -> str:
        if keywords and rng.random() < 0.05:
            return rng.choice(keywords)
        name = pick_name(names, rng)
        if colour and rng.random() < 0.1:
            name = f"{colour} {name}"
        return noun_phrase(name, rng)

    return phrase


def rows(
    file: str,
    names: Names,
    style: Style,
    keywords: Sequence[str],
    colour: str | None,
    grounds: float,
    seed: int,
    count: int = 24,
) -> Iterator[Row]:
    """A picture on white, and on `grounds` coloured backgrounds on average.

    The fraction of `grounds` is the share of pictures that get one more.
    """
    # a generator seeded by a text is the same on every machine and run
    rng = random.Random(f"{seed}/{file}")
    extra = int(grounds) + (rng.random() < grounds % 1)
    allowed = [name for name in sorted(BACKGROUNDS) if not held_out("ground", names.name, name)]
    phrase = thing_phrases(names, keywords, colour)
    text, weights = captions_of(names.name, phrase, count, style, (), rng)
    texts = set(text)
    # every name is said at least once on white, however the chances fall
    sure = [f"{name}, {style.words}" for name in names.all]
    more = [caption for caption in sure if caption not in texts]
    share = 1.0 - CANONICAL / 2
    text, weights = weighed(
        [*zip(text, [weight * share for weight in weights], strict=True)]
        + [(caption, (1.0 - share) / max(len(more), 1)) for caption in more]
    )
    yield row(file, (text, weights), None)
    for name in rng.sample(allowed, min(extra, len(allowed))):
        yield row(file, captions_of(names.name, phrase, count // 2, style, (name,), rng), name)


def row(file: str, captions: tuple[list[str], list[float]], colour: str | None) -> Row:
    """A picture on a coloured or white background, with captions and their weights."""
    text, weights = captions
    behind = hexadecimal(colour) if colour else WHITE
    return {"file_name": file, "text": text, "weights": weights, "background": behind}


# --- Words ---------------------------------------------------------------------------------------


def words_in(texts: Sequence[str]) -> set[str]:
    """All words of texts, without punctuation."""
    return {word for text in texts for word in re.findall(r"[a-z0-9]+", text)}


def ignored_words() -> list[str]:
    """The words that are put into captions to be ignored."""
    return sorted(words_in([*ADJECTIVES, *ENDINGS]) - {"on"})
