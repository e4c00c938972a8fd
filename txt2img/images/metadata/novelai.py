"""NovelAI's metadata, and its emphasis in A1111's syntax: {x} → (x:1.05), 1.5::x :: → (x:1.5).

docs.novelai.net, "Strengthening and Weakening Vectors": a pair of braces multiplies by 1.05, a pair
of square brackets divides by it; round brackets are text. Brackets without a partner are text too.
"""

import re
from collections.abc import Mapping

from txt2img.images.metadata.parsed import ParsedMetadata, from_table, json_table
from txt2img.request.prompt_syntax import DEPTH_MAX, Span, merged

FIELDS = {
    **{name: name for name in ("steps", "seed", "sampler", "width", "height", "cfg_rescale")},
    "scale": "cfg",
    "uc": "negative",
    "noise_schedule": "schedule",
}
STEP = 1.05
_MARKS = re.compile(r"(-?\d+(?:\.\d+)?)::|::|[{}\[\]]|[^{}\[\]:\d-]+|.", re.DOTALL)
_PARTNER = {"}": "{", "]": "["}
_FACTOR = {"{": STEP, "[": 1 / STEP}


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata in `Comment`. ValueError."""
    if texts.get("Software") != "NovelAI" or "Comment" not in texts:
        return None
    table = json_table(texts["Comment"])
    parsed = from_table(table, FIELDS)
    parsed.values["prompt"] = table.get("prompt", texts.get("Description", ""))
    parsed.values["compat"] = "novelai"
    parsed.values.setdefault("clip_skip", 2)  # as A1111 reads its pictures
    if parsed.values.get("schedule") == "native":
        del parsed.values["schedule"]  # the model's own
    for name in ("prompt", "negative"):
        prompt = parsed.values.get(name)
        if isinstance(prompt, str):
            parsed.values[name] = to_a1111(prompt)
            if has_emphasis(prompt):
                parsed.notes.append(f"the {{emphasis}} of its {name} is written as (weights:1.05)")
    return parsed


def has_emphasis(prompt: str) -> bool:
    """Whether a prompt has braces, square brackets or numeric weights."""
    return bool(re.search(r"[{}\[\]]|\d::", prompt))


def to_a1111(prompt: str) -> str:
    """The prompt with A1111's weights, and its round brackets escaped."""
    return "".join(map(_written, merged(_spans(prompt))))


def _spans(prompt: str) -> list[Span]:
    """The prompt's pieces, each with its weight."""
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"{": [], "[": []}
    factor = 1.0  # that a number before :: sets
    for mark in _MARKS.finditer(prompt):
        sign = mark[0]
        if mark[1] is not None:
            factor = float(mark[1])
        elif sign == "::":
            factor = 1.0
        elif sign in _PARTNER and opened[_PARTNER[sign]]:
            kind = _PARTNER[sign]
            first = opened[kind].pop()
            pieces[first] = ("", 1.0)  # the bracket itself
            pieces[first:] = [(text, weight * _FACTOR[kind]) for text, weight in pieces[first:]]
        else:
            if sign in opened and len(opened[sign]) < DEPTH_MAX:
                opened[sign].append(len(pieces))
            pieces.append((sign, factor))
    return [Span(text, round(weight, 4)) for text, weight in pieces]


def _written(span: Span) -> str:
    text = re.sub(r"[()\[\]\\]", r"\\\g<0>", span.text)
    return text if span.weight == 1 else f"({text}:{span.weight:g})"
