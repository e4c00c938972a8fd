"""Wildcards in prompts: {red|blue}, and __colour__ for a line of the file colour.txt.

Choices depend only on the picture's seed. A backslash before a brace, a bar or an underscore makes
it text, and braces without a bar are text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from itertools import islice
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.request.request import PROMPT_MAX, Request
from txt2img.system.files import read_bounded
from txt2img.system.text import shown

TEMPLATE_MAX = 16_384  # characters
FILE_MAX = 2**24  # bytes
DEPTH_MAX = 20  # braces in braces, or files that name files
CHOICES_MAX = 10_000  # in one prompt
# Names have no dots and no leading slash: a prompt can name no file outside the folder.
_TOKEN = re.compile(r"\\[{}|_]|[{}|]|__((?:\w|-)+?(?:/(?:\w|-)+?)*)__")


@dataclass(frozen=True)
class _Name:
    """`__name__`, which stands for a line of a file."""

    name: str


@dataclass(frozen=True)
class _Group:
    """Braces: one of several texts."""

    alternatives: tuple["_Text", ...]


_Text = tuple[str | _Name | _Group, ...]


class Wildcards:
    """A folder of lists that fill in prompts."""

    def __init__(self, folder: Path) -> None:
        """Lists are read when a prompt first names them. BadRequest if there is no such folder."""
        if not folder.is_dir():
            raise BadRequest(f"--wildcards {shown(str(folder))} is no folder; name one with lists")
        self.folder = folder
        self.lists: dict[str, list[_Text]] = {}

    def resolve(self, request: Request) -> Request:
        """The request with choices made by its seed, and its templates recorded.

        BadRequest for a name without a list and for unbalanced braces; BadFile.
        """
        prompt, template = self._filled(request.template or request.prompt, request, "prompt")
        negative = request.negative_template or request.negative
        negative, negative_template = self._filled(negative, request, "negative")
        return replace(
            request,
            prompt=prompt,
            negative=negative,
            template=template,
            negative_template=negative_template,
        )

    def _filled(self, text: str, request: Request, which: str) -> tuple[str, str]:
        """A text with its choices made, and its template, empty if it had no choices."""
        if not _TOKEN.search(text):
            return text, ""
        if len(text) > TEMPLATE_MAX:
            raise BadRequest(
                f"{which} has {len(text):,} characters; with wildcards {TEMPLATE_MAX:,} are allowed"
            )
        pieces: list[str] = []
        choices = _random_numbers(f"{which} {request.seed}")
        self._fill(_parse(text), choices, pieces, 0)
        filled = "".join(pieces).strip()
        return filled, text if filled != text else ""

    def _fill(self, text: _Text, choices: Iterator[int], pieces: list[str], depth: int) -> None:
        """Append a text's pieces, making its choices in order."""
        if depth > DEPTH_MAX:
            raise BadRequest(f"wildcards within wildcards, more than {DEPTH_MAX} deep")
        for part in text:
            if isinstance(part, str):
                pieces.append(part)
                continue
            try:
                choice = next(choices)
            except StopIteration:
                raise BadRequest(f"a prompt of more than {CHOICES_MAX:,} choices") from None
            texts = self._list(part.name) if isinstance(part, _Name) else part.alternatives
            self._fill(texts[choice % len(texts)], choices, pieces, depth + 1)
            if len(pieces) > PROMPT_MAX:
                raise BadRequest(f"the wildcards give more than {PROMPT_MAX:,} characters")

    def _list(self, name: str) -> list[_Text]:
        """The lines of a list. BadRequest if it is missing or empty, BadFile."""
        if name not in self.lists:
            path = self.folder / f"{name}.txt"
            if not path.exists():
                raise BadRequest(self._unknown(name))
            content = read_bounded(path, FILE_MAX)
            try:
                lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
            except UnicodeDecodeError as error:
                raise BadFile(f"{shown(str(path))} is not UTF-8 text; save it as UTF-8") from error
            self.lists[name] = [_parse(line) for line in lines if line and line[0] != "#"]
        if not self.lists[name]:
            raise BadRequest(f"the list {shown(name)} of the wildcards is empty")
        return self.lists[name]

    def _unknown(self, name: str) -> str:
        files = islice(self.folder.rglob("*.txt"), 10_000)
        known = [path.relative_to(self.folder).with_suffix("").as_posix() for path in files]
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean __{near[0]}__?" if near else f" in {shown(str(self.folder))}"
        return f"no list {shown(name)} for __{name}__{hint}"


def _random_numbers(key: str) -> Iterator[int]:
    """Pseudo-random numbers; the same for a key in every version of Python."""
    for i in range(CHOICES_MAX):
        yield int.from_bytes(sha256(f"{key} {i}".encode()).digest()[:8], "big")


def _parse(text: str) -> _Text:
    """The parts of a text. BadRequest for unbalanced braces."""
    stack: list[list[list[str | _Name | _Group]]] = [[[]]]
    position = 0
    for match in _TOKEN.finditer(text):
        stack[-1][-1].append(text[position : match.start()])
        position, token = match.end(), match[0]
        if token == "{":
            stack.append([[]])
        elif token == "}":
            _close(stack, match.start())
        elif token == "|" and len(stack) > 1:
            stack[-1].append([])
        elif match[1]:
            stack[-1][-1].append(_Name(match[1]))
        else:
            stack[-1][-1].append(token.removeprefix("\\"))
        if len(stack) > DEPTH_MAX:
            raise BadRequest(f"braces within braces, more than {DEPTH_MAX} deep")
    if len(stack) > 1:
        raise BadRequest("a { without its }; write \\{ for a brace that is text")
    stack[0][0].append(text[position:])
    return _tuple(stack[0][0])


def _close(stack: list[list[list[str | _Name | _Group]]], position: int) -> None:
    """Close the innermost braces: a group if they have a bar, else text."""
    if len(stack) == 1:
        raise BadRequest(f"a }} without its {{ at character {position + 1}; write \\}} for text")
    alternatives = stack.pop()
    if len(alternatives) > 1:
        stack[-1][-1].append(_Group(tuple(_tuple(parts) for parts in alternatives)))
    else:
        stack[-1][-1] += ["{", *alternatives[0], "}"]


def _tuple(parts: list[str | _Name | _Group]) -> _Text:
    return tuple(part for part in parts if part != "")
