"""Warnings about prompts that may not mean what was intended; no errors.

The grammars are those of compat.py's rules; A1111's pitfalls are from its prompt_parser.py.
"""

import re
from collections.abc import Iterator
from itertools import islice

from txt2img.request.compat import Rules, rules, steps_of
from txt2img.request.prompt_syntax import Edit, edits, schedule, spans, without_loose_edits
from txt2img.request.request import Request
from txt2img.request.sampler_names import Compat
from txt2img.system.text import shown

USUAL_WEIGHTS = (0.25, 2.0)
TEXTS_MAX = 8  # of an edited prompt that are checked
PIECE_MAX = 40  # characters of a prompt in a warning
A1111_LIKE = (Compat.A1111, Compat.A1111_GPU, Compat.FORGE, Compat.NOVELAI)

_SIGNS = re.compile(r"[()\[\]<>{}#:+]|__|break|BREAK|Break|AND")
# Possessive quantifiers: a hostile prompt must not cause backtracking.
_LOWERCASE_BREAK = re.compile(r"(?:^|[,\n])[^\S\n]*+(break|Break)[^\S\n]*+(?=[,\n]|$)")
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
    """The warnings about a filled request's prompts. BadRequest for a syntax error."""
    lines = []
    if not request.prompt.strip():
        lines.append("prompt: it is empty; what is drawn is left to the model and the seed")
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative)):
        if _SIGNS.search(text):
            lines += [f"{name}{line}" for line in _syntax(text, request, name == "prompt")]
    if request.negative.isdecimal():
        number = request.negative
        lines.append(f"negative prompt: it is a number; --count {number} draws so many pictures")
    if request.cfg == 1 and request.negative.strip() and not _AND.search(request.prompt):
        lines.append("negative prompt: at cfg 1 it has no effect")
    if request.image is not None and not steps_of(request, rules(request)).drawn:
        lines.append(
            f"strength {request.strength:g} of {request.steps} steps is none: the picture stays as "
            "it is"
        )
    return lines


def truncation_warnings(counts: dict[str, list[int]], request: Request, rules: Rules) -> list[str]:
    """A warning for each prompt that is truncated to one chunk, by its token counts."""
    if not rules.prompt.truncate:
        return []
    names = {"prompt": "prompt", "negative": "negative prompt"}
    return [
        f"{names[name]}: {sum(chunks)} tokens; all but the first {chunks[0]} are left out "
        f"by {request.compat}'s rules"
        for name, chunks in counts.items()
        if len(chunks) > 1
    ]


def _syntax(text: str, request: Request, is_positive: bool) -> Iterator[str]:
    """The warnings about one prompt's syntax."""
    program = rules(request)
    grammar = program.prompt.grammar
    if grammar == "a1111":
        yield from _unbalanced(text, "()", "all after it counts 1.1 times")
        yield from _unbalanced(text, "[]", "all after it counts 1/1.1 times")
        for mark in _LOWERCASE_BREAK.finditer(text):
            yield f", character {mark.start(1) + 1}: {mark[1]} is a word; BREAK begins a new chunk"
    elif grammar == "comfyui":
        yield from _unbalanced(text, "()", "it is read as text")
    yield from _other_syntax(text, request, program, is_positive)
    if program.prompt_editing and is_positive and request.compat in A1111_LIKE:
        yield from _a1111_pitfalls(text)
    if program.prompt_editing:
        for edit in edits(text, program.strict_edits):
            yield from _unreachable_edits(edit, request.steps or 1)
    yield from _weights(text, request, program)
    yield from _tags(text, is_positive)
    if wild := _WILD.search(text):
        yield f": {_piece(wild[0])} is read as text; --wildcards FOLDER fills it in"


def _unbalanced(text: str, signs: str, effect: str) -> Iterator[str]:
    """Unbalanced brackets."""
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


def _other_syntax(text: str, request: Request, program: Rules, is_positive: bool) -> Iterator[str]:
    """Syntax of other grammars that is plain text in this one."""
    grammar, whose = program.prompt.grammar, f"by {request.compat}'s rules"
    syntax = {"text": _A1111_SYNTAX, "comfyui": _SQUARE, "a1111": _EDIT}[grammar]
    if not program.prompt_editing and (mark := syntax.search(text)):
        yield f": {_piece(mark[0])} is read as text {whose}"
    if grammar != "a1111" and re.search(r"\bBREAK\b", text):
        yield f": BREAK is read as a word {whose}"
    if _AND.search(text) and not (program.prompt_editing and is_positive):
        yield f": AND is read as a word{'' if program.prompt_editing else f' {whose}'}"
    if request.compat is Compat.INVOKEAI and (mark := _COMPEL.search(text)):
        yield f": {_piece(mark[0])} is compel's weight, which is not supported and read as text"


def _a1111_pitfalls(text: str) -> Iterator[str]:
    """Syntax that surprises in A1111, or differs from it here."""
    if _BREAK_INSIDE.search(text):
        yield ": BREAK within brackets, which A1111 reads as a word, begins a new chunk here"
    if (mark := _EDIT.search(text)) and mark[0] not in without_loose_edits(text):
        yield f": {_piece(mark[0])} is text, because of a bar or bracket that A1111 cannot place"
    if "#" in text:
        yield ": A1111 drops # and the rest of its line, which is drawn here"
    if (mark := _SUFFIX.search(text)) and not _AND.search(text):
        yield f": {_piece(mark[0])} at its end is a weight of {mark[1]} for all of it, as in A1111"


def _unreachable_edits(edit: Edit, steps: int) -> Iterator[str]:
    """Edits before the first step or after the last."""
    if edit.last_before(steps) >= steps:
        advice = (
            "; for a weight write (word:1.2)" if not any(edit.before) and "." in edit.when else ""
        )
        yield f": an edit at {edit.when} of {steps} steps never happens{advice}"
    elif edit.last_before(steps) < 1 and any(edit.before):
        yield f": an edit at {edit.when} of {steps} steps happens before the first"


def _weights(text: str, request: Request, program: Rules) -> Iterator[str]:
    """Weights far from 1."""
    texts = [text]
    if program.prompt_editing:
        edited = schedule(text, request.steps or 1, program.strict_edits)
        texts = [words for _, words in edited]
    unusual = {
        (span.text.strip(" ,"), span.weight): None  # a dict keeps the order
        for words in islice(dict.fromkeys(texts), TEXTS_MAX)
        for span in spans(words, program.prompt.grammar)
        if not USUAL_WEIGHTS[0] <= span.weight <= USUAL_WEIGHTS[1]
    }
    for words, weight in unusual:
        yield f": {_piece(words)} counts {weight:.3g} times; 0.5 … 1.5 is usual"


def _tags(text: str, is_positive: bool) -> Iterator[str]:
    """Tags of networks without effect; those that have one were taken out of the prompt before."""
    for mark in _TAG.finditer(text):
        why = "in it" if not is_positive else "without its >" if mark[0][-1] != ">" else "here"
        yield f": {_piece(mark[0])} does nothing {why} and is read as text"


def _piece(text: str) -> str:
    return shown(text, PIECE_MAX)
