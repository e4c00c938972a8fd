"""Scenes of single pictures: colours, counts, places and things with things, with captions.

Words compose where training shows them composed. Each combination (a thing in a colour, so many of
a thing, a thing left of another, …) is either taught or held out, in all styles alike. Things in
scenes have one of two sizes and stand at fixed places, so that what is drawn small is drawn often
enough to be known well.
"""

import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from txt2img.train.default_model.captions import (
    BACKGROUNDS,
    WHITE,
    Placed,
    Row,
    captions_of,
    held_out,
    hexadecimal,
    is_plural,
    noun_phrase,
    pick_name,
    with_article,
)
from txt2img.train.default_model.icons import Style
from txt2img.train.default_model.names import Names

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
SAME = 0.04  # of a turn: a thing whose hue is as near as this to a colour's is of that colour
MOVED = 0.06  # of a turn: the least move that deserves another name

# The two sizes, and places on a grid of 8 of 256 pixels, which is a latent's.
LARGE, SMALL = 0.625, 0.5
GRID = 32
LEFT, RIGHT, TOP, BOTTOM, CENTRE = (0.0, 0.25), (0.5, 0.25), (0.25, 0.0), (0.25, 0.5), (0.25, 0.25)
FRONT, BACK = (0.25, 0.5), (0.1875, 0.0)
CORNERS = {"top left": (0.0, 0.0), "top right": (0.5, 0.0)}
CORNERS |= {"bottom left": (0.0, 0.5), "bottom right": (0.5, 0.5)}
NUMBERS = {2: "two", 3: "three", 4: "four"}
SPOTS = {2: (LEFT, RIGHT), 3: (TOP, *list(CORNERS.values())[2:]), 4: tuple(CORNERS.values())}

PLURALS = {
    "child": "children",
    "die": "dice",
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


def listed(names: str) -> frozenset[str]:
    """Names between commas."""
    return frozenset(names.split(","))


# Usual names of what sits on, and of what is sat on, stood on, ridden, filled or gone to.
RIDERS = listed(
    "astronaut,cat,dog,dog face,man,woman,boy,girl,child,person,king,princess,wizard,witch,chef,"
    "robot,alien,ghost,monkey,bear,panda,penguin,frog,rabbit,fox,teddy bear,skull,santa claus,"
    "superhero,clown,lion,pig,owl,duck,chick,mouse,koala,tiger,detective,police officer,ninja,"
    "zombie,vampire,dinosaur,cat face,unicorn,elephant,sheep,cow,goat,elf,fairy,mermaid"
)
MOUNTS = listed(
    "horse,bicycle,motorcycle,skateboard,elephant,unicorn,dragon,dinosaur,camel,scooter,sled,"
    "dolphin,turtle,cow,goat,pig,llama,zebra,giraffe,whale,shark,rocket,tractor,car"
)
STANDS = listed(
    "chair,bed,sofa,box,book,books,cloud,moon,planet,globe,rock,soccer ball,basketball,pizza,"
    "cake,burger,mushroom,car,bus,truck,train,airplane,rocket,sailboat,canoe,ufo,house,castle,"
    "mountain,island,tree,plate,computer,laptop,tv,piano,drum,skateboard,star,apple,wood,"
    "sandwich,donut,gift,ladder,toilet,bathtub,money,jack o lantern"
)
CONTAINERS = listed(
    "basket,bucket,bathtub,box,coffee,tea,beer,bowl,stew,hat,gift,shopping cart,handbag,backpack,"
    "canoe,sailboat,car,potted plant,honey,wine,cocktail,soda,trash can,bed,mailbox,ufo"
)
ON = ("on", "on", "on top of", "sitting on", "standing on")
RIDING = ("riding", "riding", "riding on", "on")
OVERLAPS = {"on": 0.1, "riding": 0.3, "in": 0.35}  # of the lower thing's height
SETTINGS = {  # usual names of pictures of places → how a thing is said to be there
    "beach": ("on the beach", "at the beach", "on a beach"),
    "desert": ("in the desert", "in a desert"),
    "galaxy": ("in space", "in outer space", "in the galaxy"),
    "forest": ("in the forest", "in a forest", "in the park", "in nature"),
    "night": ("at night", "in the night"),
    "city": ("in the city", "in a city", "in town"),
    "sea": ("in the sea", "in the ocean", "in the water"),
    "mountain": ("in the mountains", "on a mountain"),
    "sunset": ("at sunset",),
    "sunrise": ("at sunrise", "at dawn"),
    "island": ("on an island", "on a desert island"),
    "road": ("on the road", "on a road", "in the street"),
    "fire": ("on fire", "in flames"),
}
WEATHER = {  # what is above a thing → how a thing is said to be below it
    "rain": ("in the rain", "in rain"),
    "snow": ("in the snow", "in snow"),
    "storm": ("in a storm", "in the storm"),
    "rainbow": ("under a rainbow", "with a rainbow"),
    "moon": ("under the moon", "in the moonlight"),
    "sun": ("in the sun", "under the sun"),
    "cloud": ("under a cloud",),
    "umbrella": ("under an umbrella", "with an umbrella"),
    "star": ("under a star",),
}


@dataclass(frozen=True)
class Thing:
    """One transparent picture, to be put into scenes."""

    names: Names
    style: Style
    file: str
    hue: float | None = None  # where almost all of it is of one hue
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # of what can be seen of it

    @property
    def name(self) -> str:
        """The usual name: "red apple"."""
        return self.names.name


@dataclass(frozen=True)
class Scene:
    """A row of training data, of one kind, and the combination that it shows."""

    kind: str
    combination: tuple[str, ...]
    row: Row

    @property
    def held_out(self) -> bool:
        """Whether this combination is held out of training."""
        return held_out(self.kind, *self.combination)


@dataclass(frozen=True)
class Draft:
    """A scene before its ground and its captions."""

    combination: tuple[str, ...]
    layers: list[Placed]
    canonical: str
    phrase: Callable[[random.Random], str]
    grounds: bool = True  # whether a coloured ground suits
    bare: frozenset[str] = field(default_factory=frozenset)  # more words that no ground may have


# --- What pictures tell --------------------------------------------------------------------------


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


def visible_box(picture: bytes) -> tuple[float, float, float, float]:
    """The bounding box of a picture's visible part (left, top, right, bottom), 0 to 1."""
    alpha = Image.open(io.BytesIO(picture)).convert("RGBA").getchannel("A")
    box = alpha.point([0] * 128 + [255] * 128).getbbox() or (0, 0, *alpha.size)
    left, top, right, bottom = (edge / alpha.width for edge in box)
    return left, top, right, bottom


def colour_of(names: Names, hue: float | None) -> str | None:
    """The colour of a thing of one hue, unless its name has one already."""
    if hue is None or COLOUR_WORDS & {word for name in names.all for word in name.split()}:
        return None
    for colour, its in HUES.items():
        off = (hue - its) % 1.0
        if min(off, 1.0 - off) < SAME:
            return colour
    return None


def plural(name: str) -> str | None:
    """The name for several; None where there is no plain one."""
    *before, last = name.split()
    if JOINTS & {*before, last} or is_plural(last):
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


def place(
    thing: Thing, corner: tuple[float, float], side: float = SMALL, hue: float = 0.0
) -> Placed:
    """A thing in a square with its top left corner at a point."""
    left, top = corner
    return {"file_name": thing.file, "left": left, "top": top, "side": side, "hue": hue}


def on_grid(value: float) -> float:
    """A part of the side, rounded to a latent's grid."""
    return round(value * GRID) / GRID


def stacked(upper: Thing, lower: Thing, overlap: float) -> tuple[Placed, Placed]:
    """One thing that stands on another, `overlap` of whose height it hides."""
    top = on_grid(1.0 - LARGE * lower.box[3])
    top = min(max(top, 0.0), 1.0 - LARGE)
    height = lower.box[3] - lower.box[1]
    contact = top + LARGE * (lower.box[1] + overlap * height)
    above = min(max(on_grid(contact - SMALL * upper.box[3]), 0.0), 1.0 - SMALL)
    return place(upper, (0.25, above)), place(lower, (BACK[0], top), LARGE)


# --- Kinds of scene ------------------------------------------------------------------------------
# Each gives a draft, or None where the things that chance chose do not suit.


def both(
    one: Thing, other: Thing, words: Sequence[str], back: Sequence[str] = ()
) -> Callable[[random.Random], str]:
    """Phrases of two things: one `words` other, or other `back` one."""

    def phrase(rng: random.Random) -> str:
        article = rng.choice((0.0, 1.0, 0.5))
        first, second = (noun_phrase(pick_name(t.names, rng), rng, article) for t in (one, other))
        if back and rng.random() < 0.3:
            return f"{second} {rng.choice(back)} {first}"
        return f"{first} {rng.choice(words)} {second}"

    return phrase


def one_of(things: Sequence[Thing], names: frozenset[str], rng: random.Random) -> Thing | None:
    """A thing with one of these usual names."""
    some = [thing for thing in things if thing.name in names]
    return rng.choice(some) if some else None


def recoloured(things: Sequence[Thing], rng: random.Random) -> Draft | None:
    """A thing in another colour than its own: "purple apple"."""
    thing, colour = rng.choice(things), rng.choice(sorted(HUES))
    base = thing.name
    if thing.hue is None or COLOUR_WORDS & {*base.split()}:
        return None
    move = (HUES[colour] - thing.hue) % 1.0
    if min(move, 1.0 - move) < MOVED:
        return None

    def phrase(chance: random.Random) -> str:
        name = pick_name(thing.names, chance)
        name = base if COLOUR_WORDS & {*name.split()} else name
        return noun_phrase(f"{colour} {name}", chance)

    layers = [place(thing, (0.0, 0.0), 1.0, round(move, 4))]
    return Draft((colour, base), layers, f"{colour} {base}", phrase, bare=frozenset({colour}))


def beside(things: Sequence[Thing], rng: random.Random) -> Draft:
    """Two things side by side: "a cat left of a house"."""
    one, other = rng.sample(things, 2)
    words = ("left of", "to the left of", "next to", "beside", "and", "and", "with")
    phrase = both(one, other, words, ("right of", "to the right of", "next to", "and"))
    layers = [place(one, LEFT), place(other, RIGHT)]
    return Draft(
        (one.name, "left of", other.name), layers, f"{one.name} left of {other.name}", phrase
    )


def above(things: Sequence[Thing], rng: random.Random) -> Draft:
    """One thing above another: "a star above a house"."""
    one, other = rng.sample(things, 2)
    phrase = both(one, other, ("above", "above", "over"), ("below", "under", "beneath"))
    layers = [place(one, TOP), place(other, BOTTOM)]
    return Draft((one.name, "above", other.name), layers, f"{one.name} above {other.name}", phrase)


def on(things: Sequence[Thing], rng: random.Random) -> Draft | None:
    """One thing on another: "dog on a skateboard", "astronaut riding a horse"."""
    riding, free = rng.random() < 0.4, rng.random() < 0.3
    upper = rng.choice(things) if free and not riding else one_of(things, RIDERS, rng)
    lower = rng.choice(things) if free and not riding else None
    lower = lower or one_of(things, MOUNTS if riding else STANDS, rng)
    if upper is None or lower is None or upper.name == lower.name:
        return None
    words = RIDING if riding else ON
    layers = list(reversed(stacked(upper, lower, OVERLAPS["riding" if riding else "on"])))
    word = "riding" if riding else "on"
    canonical = f"{upper.name} {word} {with_article(lower.name)}"
    return Draft((upper.name, word, lower.name), layers, canonical, both(upper, lower, words))


def in_front(things: Sequence[Thing], rng: random.Random) -> Draft:
    """One thing in front of another: "a car in front of a house"."""
    one, other = rng.sample(things, 2)
    layers = [place(other, BACK, LARGE), place(one, FRONT)]
    phrase = both(one, other, ("in front of",), ("behind",))
    canonical = f"{one.name} in front of {with_article(other.name)}"
    return Draft((one.name, "in front of", other.name), layers, canonical, phrase)


def inside(things: Sequence[Thing], rng: random.Random) -> Draft | None:
    """One thing that looks out of another: "cat in a box"."""
    upper = rng.choice(things) if rng.random() < 0.4 else one_of(things, RIDERS, rng)
    lower = one_of(things, CONTAINERS, rng)
    if upper is None or lower is None or upper.name == lower.name:
        return None
    layers = list(stacked(upper, lower, OVERLAPS["in"]))
    phrase = both(upper, lower, ("in", "in", "inside"))
    canonical = f"{upper.name} in {with_article(lower.name)}"
    return Draft((upper.name, "in", lower.name), layers, canonical, phrase)


def somewhere(things: Sequence[Thing], rng: random.Random) -> Draft | None:
    """A thing at a place or in the weather: "penguin on the beach", "dog in the rain"."""
    weather = rng.random() < 0.4
    where = one_of(things, frozenset(WEATHER if weather else SETTINGS), rng)
    thing = rng.choice(things) if rng.random() < 0.5 else one_of(things, RIDERS, rng)
    if where is None or thing is None or where.name == thing.name:
        return None
    words = (WEATHER if weather else SETTINGS)[where.name]
    behind = place(where, TOP) if weather else place(where, (0.0, 0.0), 1.0)

    def phrase(chance: random.Random) -> str:
        name = noun_phrase(pick_name(thing.names, chance), chance)
        return f"{name} {chance.choice(words)}"

    layers = [behind, place(thing, BOTTOM)]
    canonical = f"{thing.name} {words[0]}"
    return Draft((thing.name, words[0]), layers, canonical, phrase, grounds=weather)


def counted(things: Sequence[Thing], rng: random.Random) -> Draft | None:
    """Several of one thing: "three stars"."""
    thing, number = rng.choice(things), rng.choice(sorted(NUMBERS))
    several = plural(thing.name)
    if several is None:
        return None

    def phrase(chance: random.Random) -> str:
        more = plural(pick_name(thing.names, chance)) or several
        return f"{NUMBERS[number] if chance.random() < 0.8 else number} {more}"

    layers = [place(thing, spot) for spot in SPOTS[number]]
    return Draft((NUMBERS[number], thing.name), layers, f"{NUMBERS[number]} {several}", phrase)


def cornered(things: Sequence[Thing], rng: random.Random) -> Draft:
    """A thing in a corner: "owl in the top left corner"."""
    thing, corner = rng.choice(things), rng.choice(sorted(CORNERS))
    where = f"in the {corner} corner"

    def phrase(chance: random.Random) -> str:
        return f"{noun_phrase(pick_name(thing.names, chance), chance)} {where}"

    layers = [place(thing, CORNERS[corner])]
    return Draft((corner, thing.name), layers, f"{thing.name} {where}", phrase)


def sized(things: Sequence[Thing], rng: random.Random) -> Draft:
    """A thing that leaves room around it: "small owl"."""
    thing = rng.choice(things)

    def phrase(chance: random.Random) -> str:
        return noun_phrase(f"small {pick_name(thing.names, chance)}", chance)

    return Draft(("small", thing.name), [place(thing, CENTRE)], f"small {thing.name}", phrase)


def alone(things: Sequence[Thing], rng: random.Random) -> Draft:
    """A thing unchanged, to show its background."""
    thing = rng.choice(things)

    def phrase(chance: random.Random) -> str:
        return noun_phrase(pick_name(thing.names, chance), chance)

    return Draft((thing.name,), [place(thing, (0.0, 0.0), 1.0)], thing.name, phrase)


KINDS: dict[str, tuple[Callable[[Sequence[Thing], random.Random], Draft | None], float]] = {
    "colour": (recoloured, 0.2),
    "ground": (alone, 0.16),
    "beside": (beside, 0.12),
    "above": (above, 0.1),
    "on": (on, 0.15),
    "in front": (in_front, 0.06),
    "in": (inside, 0.05),
    "somewhere": (somewhere, 0.06),
    "count": (counted, 0.06),
    "place": (cornered, 0.02),
    "size": (sized, 0.02),
}


def scene(things: Sequence[Thing], rng: random.Random) -> Scene | None:
    """A random scene; None if the random choices do not go together."""
    kind = rng.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
    draft = KINDS[kind][0](things, rng)
    if draft is None:
        return None
    words = {word for part in draft.combination for word in part.split()} | draft.bare
    grounds = behind(rng, words, always=kind == "ground") if draft.grounds else ()
    combination = (*draft.combination, *grounds) if kind == "ground" else draft.combination
    style = things[0].style
    text, weights = captions_of(draft.canonical, draft.phrase, 12, style, grounds, rng)
    colours = [hexadecimal(colour) for colour in grounds] or [WHITE]
    row: Row = {
        "file_name": draft.layers[0]["file_name"],
        "text": text,
        "weights": weights,
        "background": colours[0] if len(colours) == 1 else colours,
        "layers": draft.layers,
    }
    return Scene(kind, combination, row)


def behind(rng: random.Random, words: set[str], always: bool) -> tuple[str, ...]:
    """The background's colours: none for white, two from top to bottom; none that hides a thing."""
    chance = rng.random()
    count = 0 if chance < 0.6 and not always else 2 if chance > 0.85 else 1
    return tuple(rng.sample(sorted(set(BACKGROUNDS) - words), count))


def scenes(things: Sequence[Thing], count: int, seed: int) -> Iterator[Scene]:
    """`count` scenes of things of one style, held-out ones among them; the same for the same seed.

    Nothing where there are fewer than two things.
    """
    rng, done = random.Random(f"{seed}/{things[0].style.words}" if things else ""), 0
    while len(things) > 1 and done < count:
        new = scene(things, rng)
        if new is not None:
            done += 1
            yield new
