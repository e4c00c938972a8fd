"""What of a prompt may be meant otherwise than it is read: a line for each thing, no error.

The grammars are those of compat.py's rules; A1111's traps are from its prompt_parser.py.
"""

import re
from collections.abc import Iterator
from itertools import islice

from txt2img.request.compat import Rules, rules
from txt2img.request.prompt_syntax import Edit, edits, schedule, spans
from txt2img.request.request import Request
from txt2img.request.sampler_names import Compat
from txt2img.system.text import shown

USUAL = (0.25, 2.0)  # weights that are often meant
TEXTS_MAX = 8  # of a prompt that changes, as many are looked at
PIECE_MAX = 40  # characters of a prompt in a line
A1111 = (Compat.A1111, Compat.A1111_GPU, Compat.FORGE, Compat.NOVELAI)

_SIGNS = re.compile(r"[()\[\]<>{}#:+]|__|break|BREAK|Break|AND")
# No sign is tried again and again: a prompt may be long, and anyone's.
_SMALL_BREAK = re.compile(r"(?:^|[,\n])[^\S\n]*+(break|Break)[^\S\n]*+(?=[,\n]|$)")
_BREAK_INSIDE = re.compile(r"\((?>[^()]*?\bBREAK\b)[^()]*+\)")
_A1111_SYNTAX = re.compile(
    r"\([^()]*:\s*[+-]?[.\d]+\s*\)|(?<!\()\({2,}+[^()]++\){2,}"
    r"|\[[^\[\]:|]*+[:|][^\[\]]*+\]|(?<!\[)\[{2,}+[^\[\]]++\]{2,}"
)
_COMPEL = re.compile(r"(?<!\w)\w++\+\+|\([^()]*\)(?:[.\d]+|[+-]+)(?!\w)")
_SQUARE = re.compile(r"\[[^\[\]]+\]")
_EDIT = re.compile(r"\[[^\[\]:|]*+[:|][^\[\]]*+\]")
_TAG = re.compile(r"<(?:lora|lyco|hypernet)\b[^>\n]{0,60}>?", re.IGNORECASE)
_WILD = re.compile(r"__[\w/.*-]+?__|\{[^{}|]*+\|[^{}]*+\}")
_AND = re.compile(r"\bAND\b")
_SUFFIX = re.compile(r":\s*([+-]?(?:\d+\.?|\d*\.\d+))\s*$")


def prompt_warnings(request: Request) -> list[str]:
    """A line for each thing in a filled request's prompts. BadRequest for what cannot be read."""
    lines = []
    if not request.prompt.strip():
        lines.append("prompt: it is empty; what is drawn is left to the model and the seed")
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative)):
        if _SIGNS.search(text):
            lines += [f"{name}{line}" for line in _found(text, request, name == "prompt")]
    if request.negative.isdecimal():
        number = request.negative
        lines.append(f"negative prompt: it is a number; --count {number} draws so many pictures")
    if request.cfg == 1 and request.negative.strip() and not _AND.search(request.prompt):
        lines.append("negative prompt: at cfg 1 it has no effect")
    return lines


def _found(text: str, request: Request, wanted: bool) -> Iterator[str]:
    found = rules(request)
    grammar = found.prompt.grammar
    if grammar == "a1111":
        yield from _unbalanced(text, "()", "all after it counts 1.1 times")
        yield from _unbalanced(text, "[]", "all after it counts 1/1.1 times")
        yield from _small_break(text)
    elif grammar == "comfyui":
        yield from _unbalanced(text, "()", "it is read as text")
    yield from _other_syntax(text, request, found, wanted)
    if found.prompt_editing and wanted and request.compat in A1111:
        yield from _a1111(text)
    if found.prompt_editing:
        for edit in edits(text):
            yield from _unreachable_edits(edit, request.steps or 1)
    yield from _weights(text, request, found)
    yield from _tags(text, wanted)
    if wild := _WILD.search(text):
        yield f": {_piece(wild[0])} is read as text; --wildcards FOLDER makes choices of it"


def _unbalanced(text: str, signs: str, effect: str) -> Iterator[str]:
    """Brackets of one sort without a partner."""
    opened: list[int] = []
    for mark in re.finditer(rf"\\.|[{re.escape(signs)}]", text, re.DOTALL):
        if mark[0] == signs[0]:
            opened.append(mark.start())
        elif mark[0] == signs[1] and opened:
            opened.pop()
        elif mark[0] == signs[1]:
            yield f", character {mark.start() + 1}: {signs[1]} closes nothing and is read as text"
    for place in opened:
        yield f", character {place + 1}: {signs[0]} is never closed; {effect}"


def _small_break(text: str) -> Iterator[str]:
    for mark in _SMALL_BREAK.finditer(text):
        yield f", character {mark.start(1) + 1}: {mark[1]} is a word; BREAK begins a new chunk"


def _other_syntax(text: str, request: Request, found: Rules, wanted: bool) -> Iterator[str]:
    """What another grammar means something by and this one reads as text."""
    grammar, whose = found.prompt.grammar, f"by {request.compat}'s rules"
    syntax = {"text": _A1111_SYNTAX, "comfyui": _SQUARE, "a1111": _EDIT}[grammar]
    if not found.prompt_editing and (mark := syntax.search(text)):
        yield f": {_piece(mark[0])} is read as text {whose}"
    if grammar != "a1111" and re.search(r"\bBREAK\b", text):
        yield f": BREAK is read as a word {whose}"
    if _AND.search(text) and not (found.prompt_editing and wanted):
        yield f": AND is read as a word{'' if found.prompt_editing else f' {whose}'}"
    if request.compat is Compat.INVOKEAI and (mark := _COMPEL.search(text)):
        yield f": {_piece(mark[0])} is compel's weight, which is not had and read as text"


def _a1111(text: str) -> Iterator[str]:
    """What A1111 does that is not meant as often as it is done."""
    if _BREAK_INSIDE.search(text):
        yield ": BREAK within brackets, which A1111 reads as a word, begins a new chunk here"
    if "#" in text:
        yield ": A1111 leaves out # and the rest of its line, which is drawn here"
    if (mark := _SUFFIX.search(text)) and not _AND.search(text):
        yield f": {_piece(mark[0])} at its end is a weight of {mark[1]} for all of it, as in A1111"


def _unreachable_edits(edit: Edit, steps: int) -> Iterator[str]:
    """Changes that come too early or too late to be seen."""
    if edit.last(steps) >= steps:
        advice = (
            "; for a weight write (word:1.2)" if not any(edit.before) and "." in edit.when else ""
        )
        yield f": a change at {edit.when} of {steps} steps never comes{advice}"
    elif edit.last(steps) < 1 and any(edit.before):
        yield f": a change at {edit.when} of {steps} steps comes before the first"


def _weights(text: str, request: Request, found: Rules) -> Iterator[str]:
    """Weights far from 1."""
    texts = [text]
    if found.prompt_editing:
        texts = [words for _, words in schedule(text, request.steps or 1)]
    told: set[tuple[str, float]] = set()
    for words in islice(dict.fromkeys(texts), TEXTS_MAX):
        for span in spans(words, found.prompt.grammar):
            said = span.text.strip(" ,"), span.weight
            if not USUAL[0] <= span.weight <= USUAL[1] and said not in told:
                told.add(said)
                yield f": {_piece(said[0])} counts {span.weight:.3g} times; 0.5 … 1.5 is usual"


def _tags(text: str, wanted: bool) -> Iterator[str]:
    """Tags of networks that nothing is done for: those that can be are gone from the prompt."""
    for mark in _TAG.finditer(text):
        why = "in it" if not wanted else "without its >" if mark[0][-1] != ">" else "here"
        yield f": {_piece(mark[0])} does nothing {why} and is read as text"


def _piece(text: str) -> str:
    return shown(text, PIECE_MAX)
