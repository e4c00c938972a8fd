"""Prompts from a file: lines with options of their own, JSON objects, or CSV; line by line."""

import csv
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from txt2img.errors import BadFile, BadRequest
from txt2img.request.prompt_line import columns, from_json, from_line, from_row
from txt2img.request.request import PROMPT_MAX, Request
from txt2img.system.files import open_regular
from txt2img.system.text import shown

STREAM_MAX = 2**26  # bytes of standard input, which cannot be read twice and so is kept
LINE_MAX = 2**21  # characters
KEPT_MAX = 2**21  # bytes, about: a file whose requests take no more is read once only
REQUEST_BYTES = 600  # that a request takes beside its texts
_OBJECT = re.compile(r'\{\s*(["}]|$)')  # not {red|blue}: that is a prompt with alternatives
_UNDECODED = re.compile("[\udc80-\udcff]")
_DELIMITERS = ",;\t"
Lines = Iterator[tuple[int, str]]


class Source:
    """The requests of a prompt file, line by line each time they are asked for.

    Those of a large file are read anew each time. With `lenient`, lines that cannot be drawn are
    passed over and kept in `errors` by number.
    """

    def __init__(self, read: Callable[[], BinaryIO], name: str, base: Request) -> None:
        self.read, self.name, self.base = read, name, base
        self.lenient = False
        self.errors: dict[int, BadRequest] = {}
        self._kept: list[Request] | None = None

    def __iter__(self) -> Iterator[Request]:
        """The request of every line. BadFile; BadRequest with the line's number."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Request] = []
        room = KEPT_MAX
        for request in self._read():
            room -= REQUEST_BYTES + 2 * len(request.prompt) + 2 * len(request.negative)
            if room > 0:
                kept.append(request)
            else:
                kept.clear()
            yield request
        if room > 0:
            self._kept = kept

    def _read(self) -> Iterator[Request]:
        with self.read() as file:
            utf16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
            file.seek(0)
            # Bytes that are no UTF-8 become what _lines finds: the error then knows its line.
            how = ("utf-16", "strict") if utf16 else ("utf-8-sig", "surrogateescape")
            with TextIOWrapper(file, *how) as text:
                found = False
                try:
                    for request in self._parsed(_lines(text, self.name)):
                        found = True
                        yield request
                except UnicodeDecodeError as error:
                    raise BadFile(f"{shown(self.name)} is not UTF-16 text") from error
        if not found and not self.errors:
            raise BadRequest(f"{shown(self.name)} has no prompts: write one a line")

    def _parsed(self, lines: Lines) -> Iterator[Request]:
        first = next((pair for pair in lines if pair[1].strip()), None)
        if first is None:
            return
        delimiter = self._delimiter(*first)
        if delimiter:
            yield from self._rows(*first, lines, delimiter)
            return
        convert = from_json if _OBJECT.match(first[1].lstrip()) else from_line
        for number, line in _after(first, lines):
            line = line.strip()
            if line and not line.startswith("#"):
                yield from self._one(number, partial(convert, line, self.base))

    def _delimiter(self, number: int, line: str) -> str:
        """What separates a first line's cells if it is a header of CSV, else nothing."""
        named = self.name.lower().endswith((".csv", ".tsv"))
        delimiter = max(_DELIMITERS, key=line.count)
        if not named and (line.count(delimiter) == 0 or len(line) > 1000):
            return ""
        try:
            columns(line.strip().split(delimiter))
        except BadRequest as error:
            if named:
                raise BadRequest(f"{shown(self.name)} line {number}: {error}") from error
            return ""
        return delimiter

    def _rows(self, above: int, header: str, lines: Lines, delimiter: str) -> Iterator[Request]:
        """The request of every row of CSV below a header, which is line number `above`."""
        fields = columns(header.strip().split(delimiter))
        rows = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                where = f"{shown(self.name)} line {above + rows.line_num}"
                raise BadRequest(f"{where}: not CSV: {error}") from error
            if any(cell.strip() for cell in row):
                row_request = partial(from_row, row, fields, self.base)
                yield from self._one(above + rows.line_num, row_request)

    def _one(self, number: int, make: Callable[[], Request]) -> Iterator[Request]:
        """One line's request; what is wrong with it is raised with its number, or kept."""
        try:
            request = make()
        except BadRequest as error:
            told = BadRequest(f"{shown(self.name)} line {number}: {error}")
            if not self.lenient:
                raise told from error
            self.errors[number] = told
        else:
            yield request


def source(path: str, stdin: BinaryIO, base: Request) -> Source:
    """The requests of a file, or of `stdin` for "-"; what a line leaves open is `base`'s.

    Raises BadFile for what cannot be read.
    """
    if path == "-":
        content = stdin.read(STREAM_MAX + 1)
        if len(content) > STREAM_MAX:
            limit = STREAM_MAX >> 20
            raise BadFile(f"standard input is larger than {limit} MiB; put the prompts in a file")
        return Source(lambda: BytesIO(content), "standard input", base)
    with open_regular(Path(path)) as file:
        was = _state(file)

    def again() -> BinaryIO:
        file = open_regular(Path(path))
        if _state(file) != was:
            file.close()
            raise BadFile(f"{shown(path)} changed while it was drawn from")
        return file

    return Source(again, path, base)


def read(path: str, stdin: BinaryIO, base: Request) -> list[Request]:
    """All requests of a file at once. BadFile, BadRequest with the line's number."""
    return list(source(path, stdin, base))


def parse(text: str, base: Request, name: str = "prompts") -> Iterator[Request]:
    """The request of every line; blank lines and lines that begin with # are skipped."""
    return iter(Source(lambda: BytesIO(text.encode("utf-8")), name, base))


def _state(file: BinaryIO) -> tuple[int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns


def _lines(text: TextIOWrapper, name: str) -> Lines:
    """The lines with their numbers, from 1. BadFile for what is no text, BadRequest if too long."""
    number = 0
    while line := text.readline(LINE_MAX + 1):
        number += 1
        if len(line) > LINE_MAX:
            raise BadRequest(
                f"{shown(name)} line {number}: more than {LINE_MAX:,} characters; "
                f"a prompt has at most {PROMPT_MAX:,}"
            )
        if not line.isascii() and _UNDECODED.search(line):
            raise BadFile(f"{shown(name)} line {number} is not UTF-8 text; save it as UTF-8")
        yield number, line


def _after(first: tuple[int, str], rest: Lines) -> Lines:
    yield first
    yield from rest
