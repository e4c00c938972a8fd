"""The prompt language: "(red:1.3) [cat:dog:0.5] AND fog :0.4" → texts over the steps → spans.

The grammar is A1111's (modules/prompt_parser.py), whose documented examples the tests hold.
Brackets without a partner are text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Literal

from txt2img.errors import BadRequest
from txt2img.system.text import shown

MORE = 1.1  # what a pair of brackets multiplies by
DEPTH_MAX = 50  # brackets within brackets; what is deeper changes nothing
# Whatever is tried is tried once: a prompt may be long, and anyone's. So (?<!\s)\s*+, not \s*.
_BREAK = re.compile(r"(?<!\s)\s*+\bBREAK\b\s*+")
_MARKS = re.compile(r"\\.|:\s*([+-]?[.\d]+)\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r"(?<!\s)\s*+:\s*([+-]?(?:\d+\.?|\d*\.\d+))\s*$")
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")

Grammar = Literal["a1111", "comfyui", "text"]


@dataclass(frozen=True)
class Span:
    """Words that count `weight` times; `fresh` ones begin a new chunk."""

    text: str
    weight: float = 1.0
    fresh: bool = False


@dataclass(frozen=True)
class Edit:
    """Changes from one text to another after the step `when`."""

    before: "tuple[Part, ...]"
    after: "tuple[Part, ...]"
    when: str  # a whole number of steps, or with a point a part of them

    def last(self, steps: int) -> int:
        """The last step of the first text: a number with a point is a part of the steps."""
        value = float(self.when) * (steps if "." in self.when else 1)
        return int(min(value, steps))


@dataclass(frozen=True)
class Turns:
    """Texts that take turns, one a step."""

    texts: "tuple[tuple[Part, ...], ...]"


Part = str | Edit | Turns


@lru_cache(maxsize=8)  # as with _schedule
def spans(text: str, grammar: Grammar = "a1111") -> tuple[Span, ...]:
    """A text's spans: no prompt is without one, no two neighbours could be one. BadRequest."""
    if grammar == "text" or (grammar == "comfyui" and not re.search(r"[\\()]", text)):
        return (Span(text),)
    if grammar == "comfyui":
        return merged(list(_absolute(text)))
    if not any(sign in text for sign in "()[]") and not ("BREAK" in text and _BREAK.search(text)):
        return (Span(text),)
    return merged(_multiplied(text))


def merged(found: Sequence[Span]) -> tuple[Span, ...]:
    """Spans with neighbours of one weight as one; those without text are left out."""
    result: list[Span] = []
    for span in found:
        if not span.text and not span.fresh:
            continue
        if result and not span.fresh and result[-1].weight == span.weight:
            result[-1] = Span(result[-1].text + span.text, span.weight, result[-1].fresh)
        else:
            result.append(span)
    return tuple(result) or (Span(""),)


def _multiplied(text: str) -> list[Span]:
    """A1111's weights: each pair of brackets multiplies all that is in it. BadRequest."""
    found: list[tuple[str, bool]] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        first = opened[kind].pop()
        if len(opened[kind]) < DEPTH_MAX:
            for place in range(first, len(weights)):
                weights[place] *= factor

    for mark in _MARKS.finditer(text):
        sign = mark[0]
        if sign in opened:
            opened[sign].append(len(weights))
        elif mark[1] is not None and opened["("]:
            close("(", _weight(mark[1], mark.start(1) + 1))
        elif sign == ")" and opened["("]:
            close("(", MORE)
        elif sign == "]" and opened["["]:
            close("[", 1 / MORE)
        else:
            # A backslash goes, whatever it stands before.
            pieces = [sign[1:]] if sign.startswith("\\") else _BREAK.split(sign)
            found += [(piece, i > 0) for i, piece in enumerate(pieces)]
            weights += [1.0] * len(pieces)
    while opened["("]:
        close("(", MORE)
    while opened["["]:
        close("[", 1 / MORE)
    both = zip(found, weights, strict=True)
    return [Span(piece, weight, fresh) for (piece, fresh), weight in both]


def _weight(digits: str, place: int) -> float:
    """The weight that stands at character `place`, the first being 1. BadRequest."""
    try:
        return float(digits)
    except ValueError:
        raise BadRequest(
            f"prompt, character {place}: {shown(digits)} is no weight; write (word:1.2)"
        ) from None


def _absolute(text: str, weight: float = 1.0, depth: int = 0) -> Iterator[Span]:
    r"""ComfyUI's weights (comfy/sd1_clip.py, token_weights): a number replaces the outer one.

    Only round brackets count, and only \( and \) are escapes.
    """
    end, pairs = 0, _pairs(text, "()")
    while depth < DEPTH_MAX:
        start = next((i for i in range(end, len(text)) if i in pairs), None)
        if start is None:
            break
        yield Span(_unescaped(text[end:start]), weight)
        inner, colon, number = text[start + 1 : pairs[start]].rpartition(":")
        try:
            inside = float(number) if colon and inner else None
        except ValueError:
            inside = None
        if inside is None:
            inner, inside = text[start + 1 : pairs[start]], weight * MORE
        yield from _absolute(inner, inside, depth + 1)
        end = pairs[start] + 1
    yield Span(_unescaped(text[end:]), weight)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([()])", r"\1", text)


def _pairs(text: str, signs: str) -> dict[int, int]:
    """Where each bracket that has a partner is closed; escaped ones are none."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for mark in re.finditer(r"\\.|[" + re.escape(signs) + "]", text, re.DOTALL):
        if mark[0] == signs[0]:
            opened.append(mark.start())
        elif mark[0] == signs[1] and opened:
            pairs[opened.pop()] = mark.start()
    return pairs


def schedule(text: str, steps: int) -> list[tuple[int, str]]:
    """The texts of a prompt with `[from:to:when]` and `[a|b]`, each with its last step."""
    return list(_schedule(text, steps)) if "[" in text else [(steps, text)]


@lru_cache(maxsize=4)  # a prompt is looked through, counted and drawn
def _schedule(text: str, steps: int) -> tuple[tuple[int, str], ...]:
    parts = _read(text)
    ends = sorted({steps, *_ends(parts, steps)})
    texts = [(end, "".join(_at(parts, end, steps))) for end in ends]
    runs = groupby(texts, key=lambda pair: pair[1])
    return tuple((list(run)[-1][0], words) for words, run in runs)


def edits(text: str) -> Iterator[Edit]:
    """The changes `[from:to:when]` of a prompt, each before those inside it."""
    return _edits(_read(text)) if "[" in text else iter(())


def _edits(parts: Sequence[Part]) -> Iterator[Edit]:
    for part in parts:
        if isinstance(part, Edit):
            yield part
            yield from _edits((*part.before, *part.after))
        elif isinstance(part, Turns):
            yield from _edits([inner for turn in part.texts for inner in turn])


def composed(text: str, always: bool = False) -> list[tuple[float, str]]:
    """The prompts that AND joins, each with its weight: `a cat AND a dog :0.5`.

    Without AND a number at the end is text, unless it is `always` a weight, as in A1111.
    """
    parts = _AND.split(text)
    if len(parts) == 1 and not always:
        return [(1.0, text)]
    found = []
    for part in parts:
        mark = _PART_WEIGHT.search(part)
        found.append((float(mark[1]), part[: mark.start()]) if mark else (1.0, part))
    return found


@lru_cache(maxsize=4)  # as with _schedule
def _read(text: str) -> tuple[Part, ...]:
    """A text's plain parts and those that change."""
    return _parts(text)


def _parts(text: str, depth: int = 0) -> tuple[Part, ...]:
    """The same of a text so deep within brackets."""
    pairs = _pairs(text, "[]") if depth < DEPTH_MAX else {}
    found: list[Part] = []
    end = 0
    for start in sorted(pairs):
        if start < end:
            continue
        inner = text[start + 1 : pairs[start]]
        change = _change(inner, depth)
        found.append(text[end:start])
        # Other square brackets are a weight, of what may change.
        found += ["[", *_parts(inner, depth + 1), "]"] if change is None else [change]
        end = pairs[start] + 1
    return (*found, text[end:])


def _change(inner: str, depth: int) -> Edit | Turns | None:
    """What square brackets around `inner` mean over time, None if nothing."""
    if ":" not in inner and "|" not in inner:
        return None
    pieces = _split(inner, ":")
    if len(pieces) in (2, 3) and (when := _WHEN.fullmatch(pieces[-1])):
        before = pieces[0] if len(pieces) == 3 else ""
        return Edit(_parts(before, depth + 1), _parts(pieces[-2], depth + 1), when[1])
    turns = _split(inner, "|")
    if len(turns) > 1:
        return Turns(tuple(_parts(turn, depth + 1) for turn in turns))
    return None


def _split(text: str, sign: str) -> list[str]:
    """The text's pieces between such signs outside all brackets."""
    pieces, depth, start = [], 0, 0
    for mark in re.finditer(r"\\.|[()\[\]:|]", text, re.DOTALL):
        if mark[0] in "([":
            depth += 1
        elif mark[0] in ")]":
            depth = max(depth - 1, 0)
        elif mark[0] == sign and not depth:
            pieces.append(text[start : mark.start()])
            start = mark.end()
    return [*pieces, text[start:]]


def _ends(parts: Sequence[Part], steps: int) -> Iterator[int]:
    """The steps after which something changes."""
    for part in parts:
        if isinstance(part, Turns):
            yield from range(1, steps + 1)
        elif isinstance(part, Edit):
            if part.last(steps) >= 1:
                yield part.last(steps)
            yield from _ends(part.before, steps)
            yield from _ends(part.after, steps)


def _at(parts: Sequence[Part], step: int, steps: int) -> Iterator[str]:
    """The text of a step, in pieces."""
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Turns):
            yield from _at(part.texts[(step - 1) % len(part.texts)], step, steps)
        else:
            now = part.before if step <= part.last(steps) else part.after
            yield from _at(now, step, steps)
