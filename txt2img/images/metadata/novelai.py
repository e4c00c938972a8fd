"""NovelAI's emphasis in A1111's words: {x} → (x:1.05), [x] → (x:0.952), 1.5::x :: → (x:1.5).

docs.novelai.net, "Strengthening and Weakening Vectors": a pair of braces multiplies by 1.05, a pair
of square brackets divides by it; round brackets are text. Brackets without a partner are text too.
"""

import re

from txt2img.request.prompt_syntax import DEPTH_MAX, Span, merged

STEP = 1.05
_MARKS = re.compile(r"(-?\d+(?:\.\d+)?)::|::|[{}\[\]]|[^{}\[\]:\d-]+|.", re.DOTALL)
_PARTNER = {"}": "{", "]": "["}
_FACTOR = {"{": STEP, "[": 1 / STEP}


def emphasized(text: str) -> bool:
    """Whether a prompt says anything of that."""
    return bool(re.search(r"[{}\[\]]|\d::", text))


def in_a1111s_words(text: str) -> str:
    """The prompt with weights as A1111 writes them, and its round brackets as text."""
    return "".join(map(_written, merged(_weighed(text))))


def _weighed(text: str) -> list[Span]:
    """The prompt's pieces, each with its weight."""
    found: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"{": [], "[": []}
    times = 1.0  # what a number before :: asks for
    for mark in _MARKS.finditer(text):
        sign = mark[0]
        if mark[1] is not None:
            times = float(mark[1])
        elif sign == "::":
            times = 1.0
        elif sign in _PARTNER and opened[_PARTNER[sign]]:
            kind = _PARTNER[sign]
            first = opened[kind].pop()
            found[first] = ("", 1.0)  # the bracket itself
            found[first:] = [(piece, weight * _FACTOR[kind]) for piece, weight in found[first:]]
        else:
            if sign in opened and len(opened[sign]) < DEPTH_MAX:
                opened[sign].append(len(found))
            found.append((sign, times))
    return [Span(piece, round(weight, 4)) for piece, weight in found]


def _written(span: Span) -> str:
    text = re.sub(r"[()\[\]\\]", r"\\\g<0>", span.text)
    return text if span.weight == 1 else f"({text}:{span.weight:g})"
