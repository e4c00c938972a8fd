"""Prompt syntax: "(red:1.3) [cat:dog:0.5] AND fog :0.4" → texts over the steps → weighted spans.

The grammar is A1111's (modules/prompt_parser.py); the tests hold its documented examples.
Unbalanced brackets are text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Literal

from txt2img.errors import BadRequest
from txt2img.system.text import shown

EMPHASIS = 1.1  # the factor of a pair of brackets
DEPTH_MAX = 50  # brackets within brackets; deeper ones have no effect
# (?<!\s)\s*+ instead of \s*: a hostile prompt must not cause backtracking.
_BREAK = re.compile(r"(?<!\s)\s*+\bBREAK\b\s*+")
_MARKS = re.compile(r"\\[\\()\[\]]?|:\s*([+-]?[.\d]+)\s*\)|[()\[\]]|[^\\()\[\]:]+|.", re.DOTALL)
_AND = re.compile(r"\bAND\b")
_PART_WEIGHT = re.compile(r"(?<!\s)\s*+:\s*([+-]?(?:\d+\.?|\d*\.\d+))\s*$")
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")

Grammar = Literal["a1111", "comfyui", "text"]


@dataclass(frozen=True)
class Span:
    """Words with one weight."""

    text: str
    weight: float = 1.0
    starts_chunk: bool = False  # after BREAK


@dataclass(frozen=True)
class Edit:
    """Prompt editing, [before:after:when]: one text up to a step, another after it."""

    before: "tuple[Part, ...]"
    after: "tuple[Part, ...]"
    when: str  # a whole number of steps, or with a point a fraction of them

    def last_before(self, steps: int) -> int:
        """The last step of the text `before`."""
        value = float(self.when) * (steps if "." in self.when else 1)
        return int(min(value, steps))


@dataclass(frozen=True)
class Alternation:
    """Texts that alternate, one a step: [a|b]."""

    texts: "tuple[tuple[Part, ...], ...]"


Part = str | Edit | Alternation


@lru_cache(maxsize=8)  # as with _schedule
def spans(text: str, grammar: Grammar = "a1111") -> tuple[Span, ...]:
    """A text's weighted spans, at least one, with neighbours of one weight merged. BadRequest."""
    if grammar == "text" or (grammar == "comfyui" and not re.search(r"[\\()]", text)):
        return (Span(text),)
    if grammar == "comfyui":
        return merged(list(_comfyui_spans(text)))
    if not any(sign in text for sign in "()[]\\") and not ("BREAK" in text and _BREAK.search(text)):
        return (Span(text),)
    return merged(_a1111_spans(text))


def merged(parts: Sequence[Span]) -> tuple[Span, ...]:
    """Spans with neighbours of one weight joined and empty ones dropped."""
    result: list[Span] = []
    for span in parts:
        if not span.text and not span.starts_chunk:
            continue
        if result and not span.starts_chunk and result[-1].weight == span.weight:
            result[-1] = replace(result[-1], text=result[-1].text + span.text)
        else:
            result.append(span)
    return tuple(result) or (Span(""),)


def _a1111_spans(text: str) -> list[Span]:
    """A1111's weights: each pair of brackets multiplies what is in it. BadRequest."""
    pieces: list[tuple[str, bool]] = []  # text, and whether it starts a chunk
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
            close("(", EMPHASIS)
        elif sign == "]" and opened["["]:
            close("[", 1 / EMPHASIS)
        else:
            # A backslash is dropped, whatever follows it.
            chunks = [sign[1:]] if sign.startswith("\\") else _BREAK.split(sign)
            pieces += [(chunk, i > 0) for i, chunk in enumerate(chunks)]
            weights += [1.0] * len(chunks)
    while opened["("]:
        close("(", EMPHASIS)
    while opened["["]:
        close("[", 1 / EMPHASIS)
    weighted = zip(pieces, weights, strict=True)
    return [Span(piece, weight, starts_chunk) for (piece, starts_chunk), weight in weighted]


def _weight(digits: str, place: int) -> float:
    """The weight at character `place`, counted from 1. BadRequest."""
    try:
        return float(digits)
    except ValueError:
        raise BadRequest(
            f"prompt, character {place}: {shown(digits)} is no weight; write (word:1.2)"
        ) from None


def _comfyui_spans(text: str, weight: float = 1.0, depth: int = 0) -> Iterator[Span]:
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
            inner, inside = text[start + 1 : pairs[start]], weight * EMPHASIS
        yield from _comfyui_spans(inner, inside, depth + 1)
        end = pairs[start] + 1
    yield Span(_unescaped(text[end:]), weight)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([()])", r"\1", text)


def _pairs(text: str, signs: str) -> dict[int, int]:
    """Opening → closing position of each balanced pair of brackets; escaped ones do not count."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for mark in re.finditer(r"\\.|[" + re.escape(signs) + "]", text, re.DOTALL):
        if mark[0] == signs[0]:
            opened.append(mark.start())
        elif mark[0] == signs[1] and opened:
            pairs[opened.pop()] = mark.start()
    return pairs


def schedule(text: str, steps: int, strict: bool = False) -> list[tuple[int, str]]:
    """The texts of a prompt with `[before:after:when]` and `[a|b]`, each with its last step.

    `strict` reads malformed brackets as A1111's parser does.
    """
    return list(_schedule(text, steps, strict)) if "[" in text else [(steps, text)]


@lru_cache(maxsize=4)  # a prompt is checked, its tokens counted, then drawn
def _schedule(text: str, steps: int, strict: bool) -> tuple[tuple[int, str], ...]:
    parts = _parse(without_loose_edits(text) if strict else text)
    ends = sorted({steps, *_ends(parts, steps)})
    texts = [(end, "".join(_at(parts, end, steps)).translate(_SHOWN)) for end in ends]
    runs = groupby(texts, key=lambda pair: pair[1])
    return tuple((list(run)[-1][0], words) for words, run in runs)


def edits(text: str, strict: bool = False) -> Iterator[Edit]:
    """The edits `[before:after:when]` of a prompt, each before those inside it."""
    text = without_loose_edits(text) if strict else text
    return _edits(_parse(text)) if "[" in text else iter(())


# Brackets that A1111 reads as text, while a prompt is parsed.
_HIDDEN = {"[": "\ue000", "]": "\ue001"}
_SHOWN = {ord(hidden): sign for sign, hidden in _HIDDEN.items()}


def without_loose_edits(text: str) -> str:
    """A text with the brackets hidden that are no edits for A1111's parser (lark, Earley).

    A bar outside of square brackets or a backslash at the end make it give up on all of them. A
    loose sign after an edit, or more of them, may be read together with its brackets: that is so if
    their number and that of the brackets that end with the edit are even together.
    """
    pairs, inside, loose = _structure(text)
    hidden = set[int]()
    backslashes = len(text) - len(text.rstrip("\\"))
    if backslashes % 2 or any(text[place] == "|" for place in loose):
        hidden = {place for pair in pairs.items() for place in pair if text[place] in "[]"}
    reach = -1
    for start, end in sorted(pairs.items()) if not hidden else ():
        enclosed, reach = start < reach, max(reach, end)
        if text[start] == "[" and ":" in inside[start]:
            depth, at = 0, end + 1
            outer = start - 1
            while pairs.get(outer) == at:
                depth, at, outer = depth + 1, at + 1, outer - 1
            count = 0
            while at + count in loose:
                count += 1
            if count and not (depth + count) % 2 and (depth or not enclosed):
                hidden |= {start, end}
    return "".join(_HIDDEN[c] if i in hidden else c for i, c in enumerate(text))


def _structure(text: str) -> tuple[dict[int, int], dict[int, set[str]], set[int]]:
    """Brackets of a text: the pairs, the colons and bars right inside each, and the loose signs."""
    pairs: dict[int, int] = {}
    inside: dict[int, set[str]] = {}
    loose: set[int] = set()
    opened: list[tuple[int, list[int]]] = [(-1, [])]  # places of brackets, and signs inside
    for mark in re.finditer(r"\\.|[()\[\]:|]", text, re.DOTALL):
        sign, place = mark[0], mark.start()
        if sign in "([":
            opened.append((place, []))
        elif sign in ":|":
            opened[-1][1].append(place)
        elif sign in ")]":
            start, signs = opened[-1]
            if start >= 0 and text[start] + sign in ("()", "[]"):
                opened.pop()
                pairs[start], inside[start] = place, {text[i] for i in signs}
                if "|" in inside[start] and (sign == ")" or ":" in inside[start]):
                    loose |= {*signs}
            else:  # what is open cannot be closed any more
                loose |= {place, *(i for first, signs in opened for i in (first, *signs))} - {-1}
                opened = [(-1, [])]
    loose |= {i for first, signs in opened for i in (first, *signs)} - {-1}
    return pairs, inside, loose


def _edits(parts: Sequence[Part]) -> Iterator[Edit]:
    for part in parts:
        if isinstance(part, Edit):
            yield part
            yield from _edits((*part.before, *part.after))
        elif isinstance(part, Alternation):
            yield from _edits([inner for text in part.texts for inner in text])


def split_and(text: str, trailing_weight: bool = False) -> list[tuple[float, str]]:
    """The prompts that AND joins, each with its weight: `a cat AND a dog :0.5`.

    Without AND, a trailing number is a weight only if `trailing_weight`, as in A1111.
    """
    parts = _AND.split(text)
    if len(parts) == 1 and not trailing_weight:
        return [(1.0, text)]
    prompts = []
    for part in parts:
        mark = _PART_WEIGHT.search(part)
        prompts.append((float(mark[1]), part[: mark.start()]) if mark else (1.0, part))
    return prompts


@lru_cache(maxsize=4)  # as with _schedule
def _parse(text: str, depth: int = 0) -> tuple[Part, ...]:
    """A text's plain parts, edits and alternations."""
    pairs = _pairs(text, "[]") if depth < DEPTH_MAX else {}
    parts: list[Part] = []
    end = 0
    for start in sorted(pairs):
        if start < end:
            continue
        inner = text[start + 1 : pairs[start]]
        edit = _edit(inner, depth)
        parts.append(text[end:start])
        # Other square brackets are a weight, and may have edits inside.
        parts += ["[", *_parse(inner, depth + 1), "]"] if edit is None else [edit]
        end = pairs[start] + 1
    return (*parts, text[end:])


def _edit(inner: str, depth: int) -> Edit | Alternation | None:
    """The edit or alternation that square brackets around `inner` are, if any."""
    if ":" not in inner and "|" not in inner:
        return None
    pieces = _split(inner, ":")
    if len(pieces) in (2, 3) and (when := _WHEN.fullmatch(pieces[-1])):
        before = pieces[0] if len(pieces) == 3 else ""
        return Edit(_parse(before, depth + 1), _parse(pieces[-2], depth + 1), when[1])
    texts = _split(inner, "|")
    if len(texts) > 1:
        return Alternation(tuple(_parse(text, depth + 1) for text in texts))
    return None


def _split(text: str, sign: str) -> list[str]:
    """Split a text at signs outside all brackets."""
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
    """The steps after which the text changes."""
    for part in parts:
        if isinstance(part, Alternation):
            yield from range(1, steps + 1)
        elif isinstance(part, Edit):
            if part.last_before(steps) >= 1:
                yield part.last_before(steps)
            yield from _ends(part.before, steps)
            yield from _ends(part.after, steps)


def _at(parts: Sequence[Part], step: int, steps: int) -> Iterator[str]:
    """The text of a step, in pieces."""
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Alternation):
            yield from _at(part.texts[(step - 1) % len(part.texts)], step, steps)
        else:
            now = part.before if step <= part.last_before(steps) else part.after
            yield from _at(now, step, steps)
