"""What a picture may be called: its name, its style, synonyms, the colour behind it."""

import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NotRequired, TypedDict

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
OPEN_SOUND = re.compile(r"[ai]|e(?!u|we)|o(?!ne )|u(?!ni)")  # "an umbrella", but "a unicorn"
HELD_OUT = 16  # one combination in so many is not taught
SMALLEST_VIEW = 0.8  # of a picture's side
MIRRORED = 0.1  # of views: with half of them, a drawing now and then mixed a thing with its mirror
VIEWED_ON_COLOUR = 0.25  # of the views
HANDED = {  # words of names whose pictures show letters, digits, hands of clocks, or a direction
    *("left", "right", "east", "west", "north", "south", "back", "on", "soon", "top", "end"),
    *("clock", "clockwise", "oclock", "thirty", "watch", "stopwatch", "timer", "calendar"),
    *("ambulance", "bus", "car", "engine", "hospital", "school", "taxi", "police", "store", "bank"),
    *("atm", "button", "sign", "symbol", "note", "notes", "score", "clef", "letter", "letters"),
    *("flag", "medal", "die", "mahjong", "card", "joker", "input", "moon", "money", "banknote"),
    *("sleeping", "zzz", "newspaper", "receipt", "chart", "map", "globe", "keyboard", "abacus"),
}
SHARED = 3  # a keyword that more concepts than this share says too little to be a caption


class Placed(TypedDict):
    """One picture of several on a scene: see data.Layer."""

    file_name: str
    left: float
    top: float
    side: float
    hue: float
    mirrored: NotRequired[bool]


class Row(TypedDict):
    """One line of metadata.jsonl: a picture on one background, and what may be said of it."""

    file_name: str
    text: list[str]
    weights: list[float]  # how often each caption is drawn; they add up to 1
    background: str | list[str]
    layers: NotRequired[list[Placed]]


def mapping(value: object) -> dict[str, object]:
    """A JSON object as a dict; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def plain_code(code: str) -> str:
    """Code points as the sets agree on them: lower case, without the variation selector."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def keywords_by_code(words: object) -> dict[str, set[str]]:
    """Code points → keywords, of an emoji-mart data file, as far as they can be said."""
    found: dict[str, set[str]] = {}
    for emoji in mapping(mapping(words).get("emojis")).values():
        skins, keywords = (mapping(emoji).get(key) for key in ("skins", "keywords"))
        if isinstance(skins, list) and skins and isinstance(keywords, list):
            plain = (str(word).lower().replace("_", " ") for word in keywords)
            code = plain_code(str(mapping(skins[0]).get("unified")))
            found[code] = {word for word in plain if is_word(word)}
    return found


def is_word(word: str) -> bool:
    """Whether a keyword can be said: plain letters, more than two."""
    return re.fullmatch(r"[a-z][a-z ]+[a-z]", word) is not None


def synonyms(codes: Mapping[str, str], keywords: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Name → keywords that point at it and at few others, and are nothing's own name.

    `codes` says which character each name stands for.
    """
    owners: dict[str, int] = {}
    for code in codes.values():
        for word in keywords.get(code, ()):
            owners[word] = owners.get(word, 0) + 1
    return {
        name: sorted(
            word for word in keywords.get(code, ()) if owners[word] <= SHARED and word not in codes
        )
        for name, code in codes.items()
    }


def with_article(name: str) -> str:
    """The name after its article; plurals ("grapes") and numbered names stay as they are."""
    if name[0].isdigit() or (name.endswith("s") and not name.endswith(("ss", "us"))):
        return name
    return f"{'an' if OPEN_SOUND.match(name) else 'a'} {name}"


def captions(
    name: str, style: str, others: Sequence[str], background: str | None
) -> tuple[list[str], list[float]]:
    """What a picture is called, and how often: mostly "red apple, 3d emoji".

    A coloured background is always said, a white one (None) seldom.
    """
    ground = f" on {with_article(background or 'white')} background"
    said = ground if background else ""
    end = f",{said}" if background else ""
    pairs = [
        (f"{name}, {style}{end}", 12.0),
        (f"{with_article(name)}, {style}{end}", 2.0),
        (f"{style} of {with_article(name)}{said}", 2.0),
        (f"{name}{said}", 1.0),
    ]
    if background:
        pairs.append((f"{name}, {style}, {background} background", 2.0))
    else:
        pairs.append((f"{name}, {style},{ground}", 1.0))
    pairs += [(f"{word}, {style}{end}", 2.0 / len(others)) for word in others]
    return weighed(pairs)


def weighed(pairs: Sequence[tuple[str, float]]) -> tuple[list[str], list[float]]:
    """Captions, each once, and their weights, which add up to 1."""
    merged: dict[str, float] = {}
    for text, weight in pairs:
        merged[text] = merged.get(text, 0.0) + weight
    total = sum(merged.values())
    return list(merged), [round(weight / total, 4) for weight in merged.values()]


def held_out(*parts: str) -> bool:
    """Whether a combination is kept from training, to ask later whether words compose."""
    return zlib.crc32("|".join(parts).encode()) % HELD_OUT == 0


def hexadecimal(colour: str) -> str:
    """A background's colour as #rrggbb."""
    red, green, blue = BACKGROUNDS[colour]
    return f"#{red:02x}{green:02x}{blue:02x}"


def rows(
    file: str,
    name: str,
    style: str,
    others: Sequence[str],
    extra: float,
    seed: int,
    views: float = 0.0,
) -> Iterator[Row]:
    """A picture on white, on `extra` colours that seed and file name choose, and in `views`.

    The fractions of `extra` and `views` are the shares of pictures that get one more of them.
    """
    # a generator seeded by a text is the same on every machine and run
    rng = random.Random(f"{seed}/{file}")
    count = int(extra) + (rng.random() < extra % 1)
    allowed = [colour for colour in sorted(BACKGROUNDS) if not held_out("ground", name, colour)]
    colours = rng.sample(allowed, min(count, len(allowed)))
    for colour in (None, *colours):
        yield row(file, captions(name, style, others, colour), colour)
    for _ in range(int(views) + (rng.random() < views % 1)):
        colour = rng.choice(allowed) if allowed and rng.random() < VIEWED_ON_COLOUR else None
        seen = row(file, captions(name, style, others, colour), colour)
        yield {**seen, "layers": [view(file, name, rng)]}


def row(file: str, said: tuple[list[str], list[float]], colour: str | None) -> Row:
    """A picture as it is on a colour, or white, with captions and their weights."""
    text, weights = said
    behind = hexadecimal(colour) if colour else WHITE
    return {"file_name": file, "text": text, "weights": weights, "background": behind}


def view(file: str, name: str, rng: random.Random) -> Placed:
    """A picture a little smaller, anywhere; mirrored seldom, and only where that is still right.

    No caption says any of it: so pictures of one caption differ from seed to seed.
    """
    side = round(rng.uniform(SMALLEST_VIEW, 1.0), 4)
    left, top = (round(rng.uniform(0.0, 1.0 - side), 4) for _ in range(2))
    mirrored = not HANDED & {*name.split()} and rng.random() < MIRRORED
    return {
        "file_name": file,
        "left": left,
        "top": top,
        "side": side,
        "hue": 0.0,
        "mirrored": mirrored,
    }
