"""Test prompts, written before training, and the picture that each asks for.

A line is a prompt, or a prompt, a tab and what is asked for: the file of the art, or a thing by its
usual name, or an arrangement and its things ("on: cat, box"). Lines that begin with # are skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from txt2img.train.data import WHITE, Layer, Pictures, Row
from txt2img.train.default_model.captions import Placed, hexadecimal
from txt2img.train.default_model.classifier import Caption, plain_rows
from txt2img.train.default_model.icons import STYLES
from txt2img.train.default_model.names import Names
from txt2img.train.default_model.scenes import (
    BACK,
    BOTTOM,
    FRONT,
    HUES,
    LARGE,
    LEFT,
    OVERLAPS,
    RIGHT,
    SPOTS,
    TOP,
    Thing,
    main_hue,
    place,
    stacked,
    visible_box,
)

FOLDER = Path(__file__).with_name("prompts")
ORIGIN = (0.0, 0.0)


@dataclass(frozen=True)
class Prompt:
    """A prompt and the thing it asks for; empty if only a person can judge the picture."""

    text: str
    target: str = ""


def read_prompts_file(name: str) -> list[Prompt]:
    """The prompts of a file of the folder."""
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("\t") for line in lines if line and not line.startswith("#")]
    return [Prompt(text, target) for text, _, target in pairs]


def read_nouns() -> list[str]:
    """The common icon nouns that the model should know."""
    return [noun for prompt in read_prompts_file("nouns") for noun in prompt.text.split()]


def things_in(data: Pictures) -> dict[str, dict[str, Thing]]:
    """Style's words → usual name → thing, of a data set's single pictures on white."""
    styles = {style.words: style for style in STYLES.values()}
    things: dict[str, dict[str, Thing]] = {}
    for row in plain_rows(data):
        caption = Caption(row.captions[0])
        if caption.style in styles:
            file = row.layers[0].file
            picture = data.read(file)
            things.setdefault(caption.style, {})[caption.concept] = Thing(
                Names(caption.concept),
                styles[caption.style],
                file,
                main_hue(picture),
                visible_box(picture),
            )
    return things


def arranged(target: str, things: Mapping[str, Thing]) -> Row | None:
    """The picture that a prompt asks for, of one style's things; None if one is missing."""
    how, _, names = target.rpartition(": ")
    kind, _, detail = how.partition(" ")
    target_names = names.split(", ") + ([detail] if kind in ("at", "below") else [])
    if not all(name in things for name in target_names):
        return None
    layers = ARRANGEMENTS[kind]([things[name] for name in target_names], detail)
    ground = hexadecimal(detail) if kind == "ground" else WHITE
    return Row(tuple(map(as_layer, layers)), (target,), (1.0,), (ground,))


def as_layer(placed: Placed) -> Layer:
    """A placed thing as a layer of the data set."""
    left, top, side, hue = (placed[key] for key in ("left", "top", "side", "hue"))
    return Layer(placed["file_name"], left, top, side, hue)


def recoloured(some: Sequence[Thing], colour: str) -> list[Placed]:
    """A thing in a colour, where it is of one hue."""
    hue = some[0].hue
    return [place(some[0], ORIGIN, 1.0, 0.0 if hue is None else (HUES[colour] - hue) % 1.0)]


def counted(some: Sequence[Thing], number: str) -> list[Placed]:
    """Several of one thing."""
    return [place(some[0], spot) for spot in SPOTS[int(number)]]


ARRANGEMENTS: dict[str, Callable[[Sequence[Thing], str], list[Placed]]] = {
    "": lambda some, _: [place(some[0], ORIGIN, 1.0)],
    "ground": lambda some, _: [place(some[0], ORIGIN, 1.0)],
    "colour": recoloured,
    "count": counted,
    "beside": lambda some, _: [place(some[0], LEFT), place(some[1], RIGHT)],
    "above": lambda some, _: [place(some[0], TOP), place(some[1], BOTTOM)],
    "below": lambda some, _: [place(some[1], TOP), place(some[0], BOTTOM)],
    "at": lambda some, _: [place(some[1], ORIGIN, 1.0), place(some[0], BOTTOM)],
    "in": lambda some, _: list(stacked(some[0], some[1], OVERLAPS["in"])),
    "on": lambda some, _: [*reversed(stacked(some[0], some[1], OVERLAPS["on"]))],
    "riding": lambda some, _: [*reversed(stacked(some[0], some[1], OVERLAPS["riding"]))],
    "front": lambda some, _: [place(some[1], BACK, LARGE), place(some[0], FRONT)],
}
