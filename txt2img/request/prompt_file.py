"""Prompts from a file: lines with options of their own, JSON objects or a list of them, or CSV."""

import csv
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import BinaryIO, cast

from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.request.input_image import STDIN, ImageRef
from txt2img.request.prompt_line import (
    Values,
    columns,
    from_json,
    from_line,
    from_row,
    from_values,
)
from txt2img.request.request import Request
from txt2img.system.files import open_regular, parse_json
from txt2img.system.text import shown

SIZE_MAX = 2**26  # bytes
HEADER_MAX = 1000  # characters of a first line that may be CSV's though the file's name is not
_OBJECT = re.compile(r'\{\s*(["}]|$)')  # not {red|blue}: that is a prompt with alternatives
_KEY = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:')  # of a JSON object among plain lines
_DELIMITERS = ",;\t"
# Files of settings and pages, whose lines are no prompts.
_OTHER_KINDS = (".toml", ".yaml", ".yml", ".ini", ".xml", ".html")
Line = tuple[int, str]  # its number, from 1, and its text


@dataclass
class PromptFile:
    """The requests of a file, the errors of lines that were skipped, by line number, and notes.

    A request without a seed wants a random one of its own.
    """

    requests: list[Request] = field(default_factory=list)
    errors: dict[Hashable, Txt2imgError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)  # that lines hold, by name


def read_prompts(
    path: str, stdin: BinaryIO, base: Request, skip_errors: bool = False
) -> PromptFile:
    """The requests of a file, or of `stdin` for "-"; what a line leaves open is `base`'s.

    BadFile for what cannot be read; BadRequest with a line's number, unless errors are skipped.
    """
    name = "standard input" if path == "-" else path
    if (suffix := Path(path).suffix.lower()) in _OTHER_KINDS:
        raise BadRequest(
            f"{shown(name)} is {suffix[1:].upper()}, no list of prompts; write one prompt a line, "
            "JSON objects, or CSV"
        )
    if path == "-":
        content = stdin.read(SIZE_MAX + 1)
    else:
        with open_regular(Path(path)) as file:
            content = file.read(SIZE_MAX + 1)
    if len(content) > SIZE_MAX:
        raise BadFile(f"{shown(name)} is larger than {SIZE_MAX >> 20} MiB; split it")
    folder = Path() if path == "-" else Path(path).parent
    return parse_prompts(_decode(content, name), base, name, skip_errors, folder)


def parse_prompts(
    text: str,
    base: Request,
    name: str = "prompts",
    skip_errors: bool = False,
    folder: Path | None = None,
) -> PromptFile:
    """The requests of a text, as `read_prompts`; skips blank lines and comments (#).

    Paths of pictures are relative to `folder`.
    """
    result = PromptFile()
    skipped: list[str] = []
    places: dict[str, list[int]] = {}  # of each option that is skipped
    listed = _json_list(text)
    unit = "line" if listed is None else "item"
    if listed is None:
        makers = _makers(text, base, name, skipped, result.pictures)
    else:
        makers = _from_list(listed, base, skipped, result.pictures)
    for number, make in makers:
        try:
            result.requests.append(_relative_to(folder or Path(), make(), base, result.pictures))
            for option in skipped:
                places.setdefault(option, []).append(number)
        except BadRequest as error:
            numbered = BadRequest(f"{shown(name)} {unit} {number}: {error}")
            if not skip_errors:
                raise numbered from error
            result.errors[number] = numbered
        skipped.clear()
    result.notes = [
        _skipped_note(option, numbers, name, unit) for option, numbers in places.items()
    ]
    if not result.requests and not result.errors:
        raise BadRequest(f"{shown(name)} has no prompts: write one a line")
    return result


def _relative_to(
    folder: Path, request: Request, base: Request, pictures: Mapping[str, bytes]
) -> Request:
    """The request with the paths that its own line gives relative to a folder. BadRequest."""
    base_ids = {id(ref) for ref in base.images}

    def relative(ref: ImageRef) -> ImageRef:
        if id(ref) in base_ids or ref.hash or ref.name in (STDIN, *pictures):
            return ref
        return ImageRef(str(folder / Path(ref.name).expanduser()))

    return request.with_images(relative) if request.has_input else request


def _skipped_note(option: str, numbers: Sequence[int], name: str, unit: str) -> str:
    """The note on an option that some lines have, and that asks for nothing."""
    more = f" and {len(numbers) - 1:,} more" if len(numbers) > 1 else ""
    return f"{shown(name)} {unit} {numbers[0]}{more}: {option} has no effect here and is skipped"


def _decode(content: bytes, name: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark. BadFile."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise BadFile(f"{shown(name)} is not UTF-16 text") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        message = f"{shown(name)} line {number} is not UTF-8 text; save it as UTF-8"
        raise BadFile(message) from error


def _json_list(text: str) -> list[object] | None:
    """The items of a text that is one JSON object, or a list of objects or prompts; else None."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        values = parse_json(text)
    except ValueError:
        return None
    if isinstance(values, dict):
        return [values] if "\n" in text.strip() else None
    if not isinstance(values, list) or not all(isinstance(item, dict | str) for item in values):
        return None
    return values


def _from_list(
    items: Sequence[object], base: Request, skipped: list[str], pictures: dict[str, bytes]
) -> Iterator[tuple[int, Callable[[], Request]]]:
    """Each item's number, from 1, and what makes its request."""
    for number, item in enumerate(items, start=1):
        if isinstance(item, str):
            yield number, partial(from_line, item, base, skipped)
        else:
            yield number, partial(from_values, cast("Values", item), base, pictures)


def _makers(
    text: str, base: Request, name: str, skipped: list[str], pictures: dict[str, bytes]
) -> Iterator[tuple[int, Callable[[], Request]]]:
    """Each line's number and what makes its request."""
    lines: Iterator[Line] = enumerate(StringIO(text, newline=None), start=1)
    first = next((line for line in lines if line[1].strip()), None)
    if first is None:
        return
    if delimiter := _delimiter(first, name):
        yield from _rows(first, lines, delimiter, base, name)
        return
    all_json = bool(_OBJECT.match(first[1].lstrip()))
    for number, line in (first, *lines):
        line = line.strip()
        if line and not line.startswith("#"):
            if all_json or _KEY.match(line):
                yield number, partial(from_json, line, base, pictures)
            else:
                yield number, partial(from_line, line, base, skipped)


def _delimiter(first: Line, name: str) -> str:
    """The separator of a CSV header's cells; empty if the line is no header."""
    number, line = first
    is_named_csv = name.lower().endswith((".csv", ".tsv"))
    delimiter = max(_DELIMITERS, key=line.count)
    if not is_named_csv and (line.count(delimiter) == 0 or len(line) > HEADER_MAX):
        return ""
    try:
        columns(line.strip().split(delimiter))
    except BadRequest as error:
        if is_named_csv:
            raise BadRequest(f"{shown(name)} line {number}: {error}") from error
        return ""
    return delimiter


def _rows(
    first: Line, lines: Iterator[Line], delimiter: str, base: Request, name: str
) -> Iterator[tuple[int, Callable[[], Request]]]:
    """The rows of CSV below the header `first`, as `_makers` gives lines."""
    above, header = first
    fields = columns(header.strip().split(delimiter))
    rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                yield above + rows.line_num, partial(from_row, row, fields, base)
    except csv.Error as error:
        where = f"{shown(name)} line {above + rows.line_num}"
        raise BadRequest(f"{where}: not CSV: {error}") from error
