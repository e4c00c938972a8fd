"""Where pictures go: safe names, and files that are whole or not there.

A file is written under a temporary name, flushed to the disk and then linked to its own name,
which fails if that is taken: a crash leaves no half picture, two programs never pick one name.
"""

import os
import re
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from txt2img.errors import BadOutput, BadRequest
from txt2img.images import formats
from txt2img.images.formats import FORMATS, PNG, Format
from txt2img.request import Request
from txt2img.request.request import check_text
from txt2img.system import files, locks
from txt2img.system.files import TEMPORARY
from txt2img.system.text import shown

TOKENS = ("seed", "index", "prompt", "width", "height", "steps", "cfg", "sampler", "model")
NUMBERS = ("seed", "index", "width", "height", "steps")  # of these, how many digits may be said
_TOKEN = re.compile(r"\{(\w+)(?::0(\d{1,2})d?)?\}")
OTHER_KINDS = (
    *(".gif", ".bmp", ".tif", ".tiff", ".jxl", ".jp2", ".heic"),
    *(".pdf", ".svg", ".psd", ".tga", ".ppm", ".ico", ".exr"),
)
SLUG_MAX = 60  # characters
SLUG_BYTES_MAX = 120


@dataclass
class Output:
    """Names for the pictures of one run, and the way to write them."""

    folder: Path
    pattern: str  # a file name with {tokens}
    exact: bool = False  # a name for one picture: taken means an error, not a number
    overwrite: bool = False
    resume: bool = False  # what is there may be of this very batch
    format: Format = PNG
    _written: set[Path] = field(default_factory=set)
    _made: list[Path] = field(default_factory=list)
    _here: tuple[Path, int] | None = None  # a file that is held while pictures are drawn

    def __enter__(self) -> Self:
        """Make the folder and prove that it can be written, before any work. BadOutput."""
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folders that were made, if nothing is in them."""
        if self._here is not None:
            locks.release(*self._here)
            self._here = None
        for folder in reversed(self._made):
            with suppress(OSError):
                folder.rmdir()

    def _prepare(self) -> None:
        try:
            try:
                self._settle()
            except FileNotFoundError:  # another process made the folder, and took it away again
                self._settle()
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        locks.remove_stale(self.folder, TEMPORARY, locks.LOCK)
        self.check_free()

    def check_free(self) -> None:
        """Raise BadOutput if the name of the one picture is taken, and that is not meant."""
        path = self.folder / self.pattern
        if self.exact and not (self.overwrite or self.resume) and os.path.lexists(path):
            raise already_exists(path)

    def _settle(self) -> None:
        """Make the folder, and keep it from being empty, so that no other process removes it."""
        for folder in (*reversed(self.folder.parents), self.folder):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                self._made.append(folder)
        self._here = files.lock_file(self.folder)

    def write_as(self, data: bytes, name: str, number: int = 1) -> Path:
        """Write one picture under the `number`-th form of a name, or a higher one. BadOutput."""
        path = self.folder / with_suffix(name, number)
        if self.exact or (self.overwrite and path not in self._written):
            publish(data, path, self.overwrite)
        else:
            path = _publish_numbered(data, self.folder / name, number)
        if self.overwrite:
            self._written.add(path)
        return path

    def write_beside(self, data: bytes, name: str) -> Path:
        """Write a file beside the pictures, under its name or the next free number. BadOutput."""
        return _publish_numbered(data, self.folder / name, 1)

    def free(self, name: str, number: int, promised: Collection[Path] = ()) -> Path:
        """The path under which `write_as` would write now, had the promised files been written."""
        path = self.folder / with_suffix(name, number)
        while not self.overwrite and (path in promised or os.path.lexists(path)):
            number += 1
            path = self.folder / with_suffix(name, number)
        return path

    def name(self, request: Request, index: int) -> str:
        """The file name of picture `index` of a run, counted from 1; what is open stays {open}."""

        def known(mark: re.Match[str]) -> str:
            token, digits = mark[1], mark[2]
            if token == "index":
                return f"{index:0{int(digits or 4)}}"
            value = getattr(request, token, None) if token in TOKENS else None
            if value is None:
                return mark[0]
            return slug(f"{value:0{int(digits)}}" if digits else str(value))

        return _TOKEN.sub(known, self.pattern)


def parse(text: str | None, several: bool, overwrite: bool = False, format: Format = PNG) -> Output:
    """What --output means: a folder, a pattern with {tokens}, or a file name. BadRequest.

    A name tells the format; where it does not, that is `form`. One name without a picture's
    suffix for several pictures is a folder's.
    """
    default = default_pattern(format)
    if text is None:
        return Output(Path(), default, overwrite=overwrite, format=format)
    _check_place(text)
    if text.endswith(("/", os.sep)) or os.path.isdir(text):
        return Output(Path(text), default, overwrite=overwrite, format=format)
    folder, name = Path(text).parent, Path(text).name
    if name == "..":
        raise BadRequest(f"--output {shown(text)} is no name for a file")
    if Path(name).suffix.lower() in OTHER_KINDS:
        kinds, better = ", ".join(FORMATS), shown(f"{Path(name).stem}{format.suffix}")
        raise BadRequest(f"pictures are written as {kinds}, not {shown(name)}; name it {better}")
    told = formats.by_suffix(name)
    if several and told is None and "{" not in text:
        return Output(Path(text), default, overwrite=overwrite, format=format)
    name = f"{name}{format.suffix}" if told is None else name
    format = told if told is not None and told.name != format.name else format
    _check_tokens(text)
    if _TOKEN.search(str(folder)):
        raise BadRequest("--output takes {tokens} in the file's name only, not in its folder's")
    pattern = bool(_TOKEN.search(name))
    if several and not pattern:
        stem, suffix = os.path.splitext(name)
        return Output(folder, f"{stem}-{{index}}{suffix}", overwrite=overwrite, format=format)
    return Output(folder, name, exact=not pattern, overwrite=overwrite, format=format)


def _check_place(text: str) -> None:
    """Raise BadRequest for what no file can be named, or put in the place of."""
    check_text("--output", text)
    if text in ("", "-") or any(unicodedata.category(c) == "Cc" for c in text):
        raise BadRequest(f"--output {shown(text)} is no name for a file; name a folder or a .png")
    if os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text)):
        raise BadRequest(
            f"--output {shown(text)} is a device or a pipe, which no picture can be put in the "
            "place of; -o - writes one to standard output"
        )


def _check_tokens(text: str) -> None:
    """Raise BadRequest for a {token} that no picture has, or that cannot be said so."""
    for said in re.findall(r"\{(.*?)\}", text):
        token, colon, _ = said.partition(":")
        if token not in TOKENS:
            allowed = ", ".join(f"{{{token}}}" for token in TOKENS)
            raise BadRequest(f"--output has no {{{said}}}; choose from {allowed}")
        if colon and (token not in NUMBERS or not _TOKEN.fullmatch(f"{{{said}}}")):
            numbers = ", ".join(f"{{{token}}}" for token in NUMBERS)
            raise BadRequest(
                f"--output {{{said}}}: how many digits can be said of {numbers}, as {{seed:06}}"
            )


def default_pattern(format: Format) -> str:
    """The pattern of names where none is asked for."""
    return f"{{prompt}}-{{seed}}{format.suffix}"


def slug(text: str) -> str:
    """`text` as a part of a file name: words joined by hyphens, nothing that leads elsewhere."""
    text = unicodedata.normalize("NFC", text).lower()
    if text.isascii():
        words = re.sub(r"[^a-z0-9._+]+", "-", text)
    else:
        words = re.sub(r"-+", "-", "".join(c if _in_a_word(c) else "-" for c in text))
    words = words[:SLUG_MAX]
    words = words.encode("utf-8")[:SLUG_BYTES_MAX].decode("utf-8", errors="ignore")
    return words.strip("-._") or "picture"


def _in_a_word(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c)[0] == "M" or c in "._+"


def publish(data: bytes, path: Path, overwrite: bool = False, lasting: bool = True) -> None:
    """Write a file whole or not at all; BadOutput if it exists, or cannot be written."""
    try:
        files.write_atomic(data, path, overwrite, lasting)
    except FileExistsError as error:
        raise already_exists(path) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def with_suffix(name: str, number: int) -> str:
    """The first, second, … form of a name: x.png, x-2.png, …"""
    if number == 1:
        return name
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{number}{suffix}"


def _publish_numbered(data: bytes, path: Path, first: int) -> Path:
    """Write under the first free of a path's numbers from `first` on: name, name-2, name-3, …"""
    for number in range(first, first + 1_000_000):
        wanted = path.with_name(with_suffix(path.name, number))
        if os.path.lexists(wanted):
            continue
        try:
            files.write_atomic(data, wanted, overwrite=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(wanted, error) from error
        return wanted
    raise already_exists(path)


def already_exists(path: Path) -> BadOutput:
    name = shown(str(path))
    return BadOutput(f"{name} exists; add --overwrite to replace a file, or choose another name")


def _unwritable(path: Path, error: OSError) -> BadOutput:
    reason = (error.strerror or str(error)).lower()
    return BadOutput(f"cannot write {shown(str(path))}: {reason}; choose another --output")
