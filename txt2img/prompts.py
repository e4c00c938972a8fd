"""Prompts from a file: one a line with options of its own, or one JSON object a line."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from txt2img.disk import open_regular, parse_json
from txt2img.errors import BadFile, BadRequest
from txt2img.escape import shown
from txt2img.request import Request

FILE_MAX = 2**26  # bytes
OPTIONS = {
    "--negative": "negative",
    "-n": "negative",
    "--width": "width",
    "-W": "width",
    "--height": "height",
    "-H": "height",
    "--steps": "steps",
    "--cfg": "cfg",
    "--cfg-rescale": "cfg_rescale",
    "--eta": "eta",
    "--sampler": "sampler",
    "--schedule": "schedule",
    "--seed": "seed",
    "--count": "count",
}
# An option where a word begins. Other short words with a hyphen are part of the prompt.
_OPTION = re.compile(r"(?:^|(?<=\s))(--[A-Za-z][\w-]*|-[nWH](?=\s))[=\s]?")
_QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')(?=\s|$)""")


def read(path: str, stdin: BinaryIO, base: Request) -> list[Request]:
    """The requests of a file, or of `stdin` for "-"; what a line leaves open is `base`'s.

    Raises BadFile for what cannot be read and BadRequest, with the line's number, for what it says.
    """
    name = "standard input" if path == "-" else path
    if path == "-":
        content = stdin.read(FILE_MAX + 1)
    else:
        with open_regular(Path(path)) as file:
            content = file.read(FILE_MAX + 1)
    if len(content) > FILE_MAX:
        raise BadFile(f"{shown(name)} is larger than {FILE_MAX >> 20} MiB; split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadFile(
            f"{shown(name)} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    requests = list(parse(text, base, name))
    if not requests:
        raise BadRequest(f"{shown(name)} has no prompts: write one a line")
    return requests


def parse(text: str, base: Request, name: str = "prompts") -> Iterator[Request]:
    """The request of every line; blank lines and lines that begin with # are skipped."""
    line_to_request = from_json if text.lstrip()[:1] == "{" else from_line
    yield from _each_line(text, base, name, line_to_request)


def from_line(line: str, base: Request) -> Request:
    """The request of `a prompt --seed 7 --cfg 5`. BadRequest for an unknown or bad option."""
    quoted = _QUOTED.match(line)
    start = quoted.end() if quoted else 0
    first = _OPTION.search(line, start)
    end = first.start() if first else len(line)
    values: dict[str, object] = {"prompt": _unquoted(line[:end].strip())}
    while end < len(line):
        option = _OPTION.match(line, end)
        assert option is not None
        field = OPTIONS.get(option[1])
        if field is None:
            raise BadRequest(f"no option {shown(option[1])} for a line; known: {_known()}")
        text, end = _value(line, option.end())
        if not text and field != "negative":
            raise BadRequest(f"{option[1]} needs a value")
        values[field] = _number(_unquoted(text)) if field != "negative" else _unquoted(text)
    return Request.from_json(base.to_json() | values)


def from_json(line: str, base: Request) -> Request:
    """The request of `{"prompt": "a cat", "seed": 7}`. BadRequest."""
    try:
        values = parse_json(line)
    except ValueError as error:
        raise BadRequest(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadRequest("not a JSON object")
    if "prompt" not in values:
        raise BadRequest('a request needs a "prompt"')
    if values.get("model", base.model) != base.model:
        raise BadRequest("one model draws all lines; choose it with --model")
    return Request.from_json(base.to_json() | values)


def _each_line(
    text: str, base: Request, name: str, convert: Callable[[str, Request], Request]
) -> Iterator[Request]:
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            yield convert(line, base)
        except BadRequest as error:
            raise BadRequest(f"{shown(name)} line {number}: {error}") from error


def _value(line: str, start: int) -> tuple[str, int]:
    """An option's value, and where the next option begins: quotes hide options inside them."""
    start += len(line[start:]) - len(line[start:].lstrip())
    quoted = _QUOTED.match(line, start)
    after = _OPTION.search(line, quoted.end() if quoted else start)
    end = after.start() if after else len(line)
    return line[start:end].strip(), end


def _unquoted(text: str) -> str:
    """Text without the quotes around all of it; an apostrophe inside is just one."""
    match = _QUOTED.fullmatch(text)
    if not match:
        return text
    return text[1:-1] if text[0] == "'" else re.sub(r"\\(.)", r"\1", text[1:-1])


def _number(text: str) -> str | int | float:
    """The number that `text` is, or the text itself for the request to judge."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _known() -> str:
    return ", ".join(option for option in OPTIONS if option.startswith("--"))
