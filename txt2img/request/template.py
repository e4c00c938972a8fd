"""Templates: the grammar of dynamic prompts, {red|blue}, {2$$a|b|c}, {0.7::a|b}, __list__.

A backslash before a brace, a bar, an underscore or # makes it text, and braces without a bar, a
number of choices or a weight are text. Variables, wrapping and combinatorial choices are errors.
"""

import re
from dataclasses import dataclass, field

from txt2img.errors import BadRequest
from txt2img.system.text import shown

DEPTH_MAX = 20  # braces in braces, or files that name files
WEIGHT_MAX = 1_000_000
# Names have no dots and no leading slash: a prompt can name no file outside the folder.
# Repeats are bounded: a hostile prompt must not cost seconds.
_PART = r"[\w*?-](?:[\w*? -]{0,120}?[\w*?-])??"
_TOKEN = re.compile(
    rf"\\[{{}}|_#]|[{{}}|]|__(?P<sampler>[~@!]?)(?P<name>{_PART}(?:/{_PART}){{0,12}}?)__"
    r"|(?P<comment>(?:^|(?<=\s))(?:\#|//)[^\n]*|/\*(?s:.*?)\*/)",
    re.MULTILINE,
)
# After {: how to choose, how many, and what to write between them.
_HEAD = re.compile(
    r"\s*(?P<sampler>[~@!])?\s*"
    r"(?:(?P<least>\d{1,5})?\s*(?P<to>-)?\s*(?P<most>\d{1,5})?\s*\$\$(?:(?P<joiner>[^${}]+)\$\$)?)?"
)
_WEIGHT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*::")
_IN_NAME = r"(?:(?!__)[\w/*-])"
_UNSUPPORTED = re.compile(
    r"(?P<variable>\$\{\s*[A-Za-z_-][\w-]*\s*[?=:}][^}]*\}?)"
    rf"|(?P<parameters>(?<!\w)__{_IN_NAME}+\([^)]*\)__)"
    rf"|(?P<choice>(?<!\w)__{_IN_NAME}*\{{[^{{}}]*\}}{_IN_NAME}*__)"
)
_WHY = {
    "variable": "variables are not supported",
    "parameters": "a list takes no variables",
    "choice": "no choices within a list's name; write {__a__|__b__}",
}


@dataclass(frozen=True)
class ListName:
    """`__name__`, which stands for a line of a list."""

    name: str
    cyclic: bool = False  # the seed counts through the lines


@dataclass(frozen=True)
class Option:
    """One of several texts, and how often it is chosen relative to the others."""

    text: "Text"
    weight: float = 1.0


@dataclass(frozen=True)
class Choice:
    """Braces: one or several of their options."""

    options: tuple[Option, ...]
    least: int = 1
    most: int | None = 1  # None: all of them
    joiner: str = ","
    cyclic: bool = False  # the seed counts through the options

    def only_name(self) -> str:
        """The list that is the only option, if any."""
        parts = self.options[0].text if len(self.options) == 1 else ()
        return parts[0].name if len(parts) == 1 and isinstance(parts[0], ListName) else ""


Text = tuple[str | ListName | Choice, ...]


@dataclass
class _Open:
    """Braces that are not closed yet; the outermost are the whole text."""

    place: int
    head: str = ""
    sampler: str = ""
    bounds: tuple[int, int | None] | None = None  # None: as many as there are
    joiner: str = ","
    weights: list[float | None] = field(default_factory=list)
    options: list[list[str | ListName | Choice]] = field(default_factory=lambda: [[]])


def has_syntax(text: str) -> bool:
    """Whether a text may be a template."""
    return bool(_TOKEN.search(text) or _UNSUPPORTED.search(text))


def parse_line(line: str) -> Option:
    """A list's line, `word` or `3::word`. BadRequest."""
    weight, end = _weight(line, 0)
    return Option(parse(line[end:]), 1.0 if weight is None else weight)


def parse(text: str) -> Text:
    """The parts of a template. BadRequest with the place of what cannot be read."""
    if match := _UNSUPPORTED.search(text):
        why = _WHY[str(match.lastgroup)]
        raise BadRequest(f"{shown(match[0])} at character {match.start() + 1}: {why}")
    stack, position = [_Open(0)], 0
    while match := _TOKEN.search(text, position):
        _add_literal(stack, text[position : match.start()], position)
        position, token, parts = match.end(), match[0], stack[-1].options[-1]
        if token == "{":
            position = _open(stack, text, match)
        elif token == "}":
            _close(stack, match.start())
        elif token == "|" and len(stack) > 1:
            weight, position = _weight(text, position)
            stack[-1].weights.append(weight)
            stack[-1].options.append([])
        elif match["name"]:
            _check_sampler(match["sampler"], match.start())
            parts.append(ListName(match["name"], match["sampler"] == "@"))
        elif match["comment"] is None:
            parts.append(token.removeprefix("\\"))
    if len(stack) > 1:
        place = stack[-1].place + 1
        raise BadRequest(f"a {{ without its }} at character {place}; write \\{{ for text")
    _add_literal(stack, text[position:], position)
    return tuple(stack[0].options[0])


def _add_literal(stack: list[_Open], literal: str, position: int) -> None:
    if len(stack) > 1 and "$$" in literal:
        place = position + literal.index("$$") + 1
        raise BadRequest(f"$$ at character {place} needs a number before it, as in {{2$$a|b|c}}")
    if literal:
        stack[-1].options[-1].append(literal)


def _open(stack: list[_Open], text: str, brace: re.Match[str]) -> int:
    """Open braces, read their head and the first weight; returns where the first option begins."""
    opened, position = _Open(brace.start()), brace.end()
    head = _HEAD.match(text, position)
    if head and (head["sampler"] or "$$" in head[0]):
        _check_sampler(head["sampler"], brace.start())
        opened.head, opened.sampler = head[0], head["sampler"] or ""
        position = head.end()
        if "$$" in head[0]:
            opened.bounds = _bounds(head, position)
            opened.joiner = head["joiner"] or ","
    weight, position = _weight(text, position)
    opened.weights.append(weight)
    stack.append(opened)
    if len(stack) > DEPTH_MAX:
        raise BadRequest(f"braces within braces, more than {DEPTH_MAX} deep")
    return position


def _bounds(head: re.Match[str], position: int) -> tuple[int, int | None]:
    """How many to choose: 2, 1-3, -3 or 2-."""
    least, most = head["least"], head["most"]
    if least is None and most is None:
        place = position - 1
        raise BadRequest(f"$$ at character {place} needs a number before it, as in {{2$$a|b|c}}")
    if not head["to"]:
        return int(least or most), int(least or most)
    low, high = int(least or 1), None if most is None else int(most)
    return (low, high) if high is None or low <= high else (high, low)


def _weight(text: str, position: int) -> tuple[float | None, int]:
    """The weight at a place, if there is one, and where its text begins. BadRequest."""
    match = _WEIGHT.match(text, position)
    if match is None:
        return None, position
    if not 0 <= float(match[1]) <= WEIGHT_MAX:
        place, weight = match.start(1) + 1, shown(match[1])
        raise BadRequest(f"the weight {weight} at character {place} must be 0 … {WEIGHT_MAX:,}")
    return float(match[1]), match.end()


def _check_sampler(sampler: str | None, position: int) -> None:
    if sampler == "!":
        raise BadRequest(f"! at character {position + 1}: combinatorial choices are not supported")


def _close(stack: list[_Open], position: int) -> None:
    """Close the innermost braces: a choice, or text."""
    if len(stack) == 1:
        raise BadRequest(f"a }} without its {{ at character {position + 1}; write \\}} for text")
    closed = stack.pop()
    weighted = any(weight is not None for weight in closed.weights)
    only_name = len(closed.options[0]) == 1 and isinstance(closed.options[0][0], ListName)
    if not (len(closed.options) > 1 or closed.bounds or weighted or (closed.sampler and only_name)):
        stack[-1].options[-1] += ["{" + closed.head, *closed.options[0], "}"]
        return
    weights = (1.0 if weight is None else weight for weight in closed.weights)
    options = tuple(
        Option(tuple(parts), weight) for parts, weight in zip(closed.options, weights, strict=True)
    )
    if not any(option.weight for option in options):
        raise BadRequest(f"all weights are 0 in the braces at character {closed.place + 1}")
    least, most = closed.bounds or (1, 1)
    cyclic = closed.sampler == "@"
    stack[-1].options[-1].append(Choice(options, least, most, closed.joiner, cyclic))
