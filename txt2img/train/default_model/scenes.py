"""Scenes from single pictures: colours, places, counts and things beside things, with captions.

Words compose where training shows them composed. Each combination (a thing in a colour, so many of
a thing, a thing left of another, …) is either taught or held out, in all styles alike.
"""

import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from txt2img.train.default_model.captions import (
    BACKGROUNDS,
    WHITE,
    Placed,
    Row,
    held_out,
    hexadecimal,
    weighed,
    with_article,
)

HUES = {  # what recoloured things are called → their hue, as part of a turn
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.145,
    "green": 0.36,
    "blue": 0.61,
    "purple": 0.77,
    "pink": 0.92,
}
COLOUR_WORDS = {*BACKGROUNDS, *HUES, "white"}
NEAR = 0.085  # of a turn: what has no other hues than these around its main one is of one colour
MOVED = 0.06  # of a turn: the least move that deserves another name
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
SPOTS = {  # how many → the middles of their squares, and the side of each
    2: (((0.26, 0.5), (0.74, 0.5)), 0.44),
    3: (((0.5, 0.27), (0.26, 0.73), (0.74, 0.73)), 0.42),
    4: (((0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)), 0.42),
    5: (((0.2, 0.2), (0.8, 0.2), (0.5, 0.5), (0.2, 0.8), (0.8, 0.8)), 0.3),
}
RELATIONS = {  # of the first to the second → the same said from the second, and their middles
    "left of": ("right of", ((0.26, 0.5), (0.74, 0.5))),
    "above": ("below", ((0.5, 0.26), (0.5, 0.74))),
}
CORNERS = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
PLURALS = {
    "child": "children",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "man": "men",
    "mango": "mangoes",
    "mouse": "mice",
    "person": "people",
    "potato": "potatoes",
    "sheep": "sheep",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "wolf": "wolves",
    "woman": "women",
}
JOINTS = {"with", "of", "in", "on", "behind", "and", "from", "without", "over"}


@dataclass(frozen=True)
class Thing:
    """One transparent picture, to be put into scenes."""

    name: str  # "red apple"
    style: str  # "3d emoji"
    file: str
    hue: float | None = None  # where almost all of it is of one hue


@dataclass(frozen=True)
class Scene:
    """A row of training data, of one kind, and the combination that it shows."""

    kind: str
    combination: tuple[str, ...]
    row: Row

    @property
    def held_out(self) -> bool:
        """Whether this combination is kept from training."""
        return held_out(self.kind, *self.combination)


def main_hue(picture: bytes) -> float | None:
    """The hue, as part of a turn, that nearly all of a picture's coloured parts have; else None."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA").resize((32, 32))
    planes = [*image.convert("RGB").convert("HSV").split(), image.getchannel("A")]
    hue, saturation, value, alpha = (
        torch.frombuffer(bytearray(plane.tobytes()), dtype=torch.uint8).float() / 256
        for plane in planes
    )
    seen = alpha > 0.5
    coloured = seen & (saturation > 0.3) & (value > 0.2)
    if int(coloured.sum()) < 0.5 * int(seen.sum()) or not bool(seen.any()):
        return None
    turns = hue[coloured] * 2 * math.pi
    middle = math.atan2(float(turns.sin().sum()), float(turns.cos().sum())) / (2 * math.pi) % 1.0
    off = ((hue[coloured] - middle + 0.5) % 1.0 - 0.5).abs()
    return middle if float((off < NEAR).float().mean()) > 0.9 else None


def plural(name: str) -> str | None:
    """The name for several; None where there is no plain one."""
    *before, last = name.split()
    if JOINTS & {*before, last} or (last.endswith("s") and not last.endswith(("ss", "us"))):
        return None
    if last in PLURALS:
        last = PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


def place(thing: Thing, middle: tuple[float, float], side: float, hue: float = 0.0) -> Placed:
    """A thing in a square around a point, wholly on the scene."""
    left, top = (round(min(max(at - side / 2, 0.0), 1.0 - side), 4) for at in middle)
    return {"file_name": thing.file, "left": left, "top": top, "side": side, "hue": hue}


# --- Kinds of scene ------------------------------------------------------------------------------
# Each gives the combination, the layers, and what may be said with how much weight, or None where
# the thing does not suit.

Told = tuple[tuple[str, ...], list[Placed], list[tuple[str, float]]]


def recoloured(things: Sequence[Thing], rng: random.Random) -> Told | None:
    """A thing in another colour than its own: "purple apple"."""
    thing, colour = rng.choice(things), rng.choice(sorted(HUES))
    first, _, rest = thing.name.partition(" ")
    base = rest if first in COLOUR_WORDS and rest else thing.name
    if thing.hue is None or COLOUR_WORDS & {*base.split()}:
        return None
    move = (HUES[colour] - thing.hue) % 1.0
    if min(move, 1.0 - move) < MOVED:
        return None
    name = f"{colour} {base}"
    layers = [place(thing, (0.5, 0.5), 1.0, round(move, 4))]
    return (colour, base), layers, [(name, 4.0), (with_article(name), 1.0)]


def beside(things: Sequence[Thing], rng: random.Random) -> Told | None:
    """Two things and how they stand to each other: "a cat above a house"."""
    one, other = rng.sample(things, 2)
    word = rng.choice(sorted(RELATIONS))
    back, middles = RELATIONS[word]
    names = (one.name, other.name)
    a, b = (with_article(name) for name in names)
    layers = [place(one, middles[0], 0.46), place(other, middles[1], 0.46)]
    said = [
        (f"{one.name} {word} {other.name}", 3.0),
        (f"{a} {word} {b}", 2.0),
        (f"{other.name} {back} {one.name}", 2.0),
        (f"{b} {back} {a}", 1.0),
        (f"{one.name} and {other.name}", 0.5),
    ]
    return (names[0], word, names[1]), layers, said


def counted(things: Sequence[Thing], rng: random.Random) -> Told | None:
    """Several of one thing: "three stars"."""
    thing, number = rng.choice(things), rng.choice(sorted(NUMBERS))
    several = plural(thing.name)
    if several is None:
        return None
    middles, side = SPOTS[number]
    layers = [place(thing, middle, side) for middle in middles]
    said = [(f"{NUMBERS[number]} {several}", 4.0), (f"{number} {several}", 1.0)]
    return (NUMBERS[number], thing.name), layers, said


def placed(things: Sequence[Thing], rng: random.Random) -> Told | None:
    """A thing in a corner: "owl in the top left corner"."""
    thing, corner = rng.choice(things), rng.choice(sorted(CORNERS))
    where = f"in the {corner} corner"
    said = [(f"{thing.name} {where}", 3.0), (f"{with_article(thing.name)} {where}", 1.0)]
    return (corner, thing.name), [place(thing, CORNERS[corner], 0.46)], said


def sized(things: Sequence[Thing], rng: random.Random) -> Told | None:
    """A thing that leaves room around it: "small owl"."""
    thing = rng.choice(things)
    name = f"small {thing.name}"
    said = [(name, 3.0), (with_article(name), 1.0)]
    return ("small", thing.name), [place(thing, (0.5, 0.5), 0.5)], said


def alone(things: Sequence[Thing], rng: random.Random) -> Told | None:
    """A thing as it is, for its background's sake."""
    thing = rng.choice(things)
    said = [(thing.name, 4.0), (with_article(thing.name), 1.0)]
    return (thing.name,), [place(thing, (0.5, 0.5), 1.0)], said


KINDS: dict[str, tuple[Callable[[Sequence[Thing], random.Random], Told | None], float]] = {
    "colour": (recoloured, 0.3),
    "beside": (beside, 0.3),
    "count": (counted, 0.15),
    "place": (placed, 0.05),
    "size": (sized, 0.05),
    "ground": (alone, 0.15),
}


def scene(things: Sequence[Thing], rng: random.Random) -> Scene | None:
    """A scene by chance; None where chance chose what does not go together."""
    kind = rng.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
    told = KINDS[kind][0](things, rng)
    if told is None:
        return None
    combination, layers, said = told
    words = {word for part in combination for word in part.split()}
    grounds = behind(rng, words, always=kind == "ground")
    if kind == "ground":
        combination = (*combination, *grounds)
    text, weights = spoken(said, things[0].style, grounds)
    colours = [hexadecimal(colour) for colour in grounds] or [WHITE]
    row: Row = {
        "file_name": layers[0]["file_name"],
        "text": text,
        "weights": weights,
        "background": colours[0] if len(colours) == 1 else colours,
        "layers": layers,
    }
    return Scene(kind, combination, row)


def behind(rng: random.Random, words: set[str], always: bool) -> tuple[str, ...]:
    """The background's colours: none for white, two from top to bottom; none that hides a thing."""
    chance = rng.random()
    count = 0 if chance < 0.5 and not always else 2 if chance > 0.85 else 1
    return tuple(rng.sample(sorted(set(BACKGROUNDS) - words), count))


def spoken(
    said: Sequence[tuple[str, float]], style: str, grounds: Sequence[str]
) -> tuple[list[str], list[float]]:
    """Captions of what is said of a scene, with its style and its background."""
    end = f" on {with_article(' to '.join(grounds))} background" if grounds else ""
    comma = f",{end}" if end else ""
    pairs = []
    for phrase, weight in said:
        pairs += [
            (f"{phrase}, {style}{comma}", 8.0 * weight),
            (f"{style} of {phrase}{end}", weight),
            (f"{phrase}{end}", weight),
        ]
    return weighed(pairs)


def scenes(things: Sequence[Thing], count: int, seed: int) -> Iterator[Scene]:
    """`count` scenes of things of one style, held-out ones among them; the same for the same seed.

    Nothing where there are fewer than two things.
    """
    rng, done = random.Random(f"{seed}/{things[0].style}" if things else ""), 0
    while len(things) > 1 and done < count:
        made = scene(things, rng)
        if made is not None:
            done += 1
            yield made
