"""Output files: safe names for pictures, and files that are whole or not there.

A file is written under a temporary name, flushed to the disk and then linked to its own name,
which fails if that is taken: a crash leaves no half picture, two programs never pick one name.
"""

import os
import re
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

from txt2img.errors import BadOutput, BadRequest
from txt2img.images import formats
from txt2img.images.formats import FORMATS, PNG, Format
from txt2img.request import Request
from txt2img.request.adapters import Lora
from txt2img.request.control import CONTROL_PARTS
from txt2img.request.fields import FIELDS
from txt2img.request.input_image import ImageRef
from txt2img.request.request import check_text
from txt2img.request.sampler_names import Name
from txt2img.system import files
from txt2img.system.files import TEMPORARY
from txt2img.system.text import shown

TOKENS = (
    *("seed", "index", "prompt", "width", "height", "steps", "cfg", "sampler", "model"),
    *("date", "time", "hash"),  # when the run began, and the model's
)
# Other fields that may tell a sweep's pictures apart.
SWEPT = (
    *(name for name, row in FIELDS.items() if row.scalar or row.listed or name == "loras"),
    *CONTROL_PARTS,
)
NUMBERS = ("seed", "index", "width", "height", "steps")  # tokens that take {token:0DIGITS}
_TOKEN = re.compile(r"\{(\w+)(?::0(\d{1,2})d?)?\}")
OTHER_KINDS = (
    *(".gif", ".bmp", ".tif", ".tiff", ".jxl", ".jp2", ".heic"),
    *(".pdf", ".psd", ".tga", ".ppm", ".ico", ".exr"),
)
NORMALISED_MAX = 4096  # characters of a prompt that its name is made of
SLUG_MAX = 60  # characters
SLUG_BYTES_MAX = 120
STEM_BYTES_MAX = 200


@dataclass
class Output:
    """The folder and the file names of a run's pictures; a context that makes the folder."""

    folder: Path
    pattern: str  # a file name with {tokens}
    exact: bool = False  # one picture's name: an error if it exists, never a number
    overwrite: bool = False
    resume: bool = False  # files that exist may be of this batch
    format: Format = PNG
    began: datetime = field(default_factory=datetime.now)
    model_hash: str = ""  # empty until it is known
    _written: set[Path] = field(default_factory=set)
    _new_folders: list[Path] = field(default_factory=list)
    _placeholder: tuple[Path, int] | None = None  # a locked file that keeps the folder

    def __enter__(self) -> Self:
        """Make the folder and prove that it is writable, before any work. BadOutput."""
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the folders that were made and stayed empty."""
        if self._placeholder is not None:
            files.release(*self._placeholder)
            self._placeholder = None
        for folder in reversed(self._new_folders):
            with suppress(OSError):
                folder.rmdir()

    def _prepare(self) -> None:
        try:
            try:
                self._make_folder()
            except FileNotFoundError:  # another process made the folder, and took it away again
                self._make_folder()
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        files.remove_stale(self.folder, TEMPORARY, files.LOCK)
        self.check_name_free()

    def check_name_free(self) -> None:
        """Raise BadOutput if the one picture's file exists and must not be replaced."""
        path = self.folder / self.pattern
        if self.exact and not (self.overwrite or self.resume) and os.path.lexists(path):
            raise already_exists(path)

    def _make_folder(self) -> None:
        """Make the folder, and a file in it, so that no other process removes it as empty."""
        for folder in (*reversed(self.folder.parents), self.folder):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                self._new_folders.append(folder)
        self._placeholder = files.lock_file(self.folder)

    def write_as(self, data: bytes, name: str, number: int = 1) -> Path:
        """Write a picture under its name with that number, or the next free one. BadOutput."""
        path = self.folder / with_suffix(name, number)
        if self.exact or (self.overwrite and path not in self._written):
            write_file(data, path, self.overwrite)
        else:
            path = _write_numbered(data, self.folder / name, number)
        if self.overwrite:
            self._written.add(path)
        return path

    def write_beside(self, data: bytes, name: str) -> Path:
        """Write another file next to the pictures, under a free name. BadOutput."""
        return _write_numbered(data, self.folder / name, 1)

    def free_path(self, name: str, number: int, promised: Collection[Path] = ()) -> Path:
        """The path that `write_as` would take, if the promised files were written."""
        path = self.folder / with_suffix(name, number)
        while not self.overwrite and (path in promised or os.path.lexists(path)):
            number += 1
            path = self.folder / with_suffix(name, number)
        return path

    def name(self, request: Request, index: int) -> str:
        """The file name of picture `index` (from 1); tokens without a value stay {token}."""

        def replacement(match: re.Match[str]) -> str:
            token, digits = match[1], match[2]
            if token == "index":
                return f"{index:0{int(digits or 4)}}"
            if token in ("date", "time"):
                return f"{self.began:{'%Y-%m-%d' if token == 'date' else '%H%M%S'}}"
            if token == "hash":
                return self.model_hash or match[0]
            if isinstance(picture := getattr(request, token, None), ImageRef):
                return stem(picture.name)
            if token in SWEPT and token not in TOKENS:
                return slug(described(request, token))
            value = getattr(request, token, None) if token in TOKENS else None
            if token == "prompt":  # as a resumed run knows it, before it is rewritten
                value = request.written or value
            if value is None:
                return match[0]
            return slug(f"{value:0{int(digits)}}" if digits else str(value))

        return _TOKEN.sub(replacement, self.pattern)


def parse(text: str | None, several: bool, overwrite: bool = False, format: Format = PNG) -> Output:
    """Parse --output: a folder, a pattern with {tokens}, or a file name. BadRequest.

    The name's suffix decides the format, else `format` does. A name without a known suffix for
    several pictures is a folder's.
    """
    folder = Output(Path(text or ""), default_pattern(format), overwrite=overwrite, format=format)
    if text is None:
        return folder
    _check_place(text)
    if text.endswith(("/", os.sep)) or os.path.isdir(text):
        return folder
    parent, name = Path(text).parent, Path(text).name
    if name == "..":
        raise BadRequest(f"--output {shown(text)} is no name for a file")
    if Path(name).suffix.lower() in OTHER_KINDS:
        kinds, better = ", ".join(FORMATS), shown(f"{Path(name).stem}{format.suffix}")
        raise BadRequest(f"pictures are written as {kinds}, not {shown(name)}; name it {better}")
    by_suffix = formats.by_suffix(name)
    if several and by_suffix is None and "{" not in text:
        return folder
    if by_suffix is None:
        name += format.suffix
    elif by_suffix.name != format.name:  # else `format` has the quality that was asked for
        format = by_suffix
    _check_tokens(text)
    if _TOKEN.search(str(parent)):
        raise BadRequest("--output takes {tokens} in the file's name only, not in its folder's")
    has_tokens = bool(_TOKEN.search(name))
    if several and not has_tokens:
        stem, suffix = os.path.splitext(name)
        name, has_tokens = f"{stem}-{{index}}{suffix}", True
    return Output(parent, name, exact=not has_tokens, overwrite=overwrite, format=format)


def _check_place(text: str) -> None:
    """Raise BadRequest for a name that no file can have, and for devices and pipes."""
    check_text("--output", text)
    if text in ("", "-") or any(unicodedata.category(c) == "Cc" for c in text):
        raise BadRequest(f"--output {shown(text)} is no name for a file; name a folder or a .png")
    if os.path.exists(text) and not (os.path.isfile(text) or os.path.isdir(text)):
        raise BadRequest(
            f"--output {shown(text)} is a device or a pipe, which a picture cannot replace; "
            "-o - writes one to standard output"
        )


def _check_tokens(text: str) -> None:
    """Raise BadRequest for an unknown {token}, or one that takes no number of digits."""
    for braced in re.findall(r"\{.*?\}", text):
        token, colon, _ = braced[1:-1].partition(":")
        if token not in TOKENS + SWEPT:
            allowed = ", ".join(f"{{{token}}}" for token in TOKENS)
            raise BadRequest(f"--output has no {braced}; choose from {allowed}")
        if colon and (token not in NUMBERS or not _TOKEN.fullmatch(braced)):
            numbers = ", ".join(f"{{{token}}}" for token in NUMBERS)
            raise BadRequest(f"--output {braced}: only {numbers} take digits, as {{seed:06}}")


def described(request: Request, name: str) -> str:
    """The value of a request's field as text for a name or a line."""
    value = getattr(request, name)
    if value is None and name in FIELDS and issubclass(kind := FIELDS[name].kind, Name):
        value = next((member for member in kind if member.is_default), None)
    if isinstance(value, tuple):
        value = "+".join(f"{x.name} {x.unet:g}" if isinstance(x, Lora) else str(x) for x in value)
    if value is None or value == "":
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_pattern(format: Format) -> str:
    """The pattern of file names if none is given."""
    return f"{{prompt}}-{{seed}}{format.suffix}"


def slug(text: str) -> str:
    """A text as part of a file name: words joined by hyphens, no separators or dots at the ends."""
    # Normalising takes the square of a run of combining marks; only the beginning is used.
    text = unicodedata.normalize("NFC", text[:NORMALISED_MAX]).lower()
    if text.isascii():
        words = re.sub(r"[^a-z0-9._+]+", "-", text)
    else:
        words = re.sub(r"-+", "-", "".join(c if _in_a_word(c) else "-" for c in text))
    words = words[:SLUG_MAX]
    words = words.encode("utf-8")[:SLUG_BYTES_MAX].decode("utf-8", errors="ignore")
    return words.strip("-._") or "picture"


def stem(name: str) -> str:
    """A picture's name as part of another's: without its ending, as it is written but for signs."""
    words = re.sub(r"[^\w.+-]+", "-", os.path.splitext(os.path.basename(name))[0])
    words = words.encode("utf-8")[:STEM_BYTES_MAX].decode("utf-8", errors="ignore")
    return words.strip("-.") or "picture"


def _in_a_word(c: str) -> bool:
    return c.isalnum() or unicodedata.category(c)[0] == "M" or c in "._+"


def write_file(data: bytes, path: Path, overwrite: bool = False, fsync: bool = True) -> None:
    """Write a file, whole or not at all; BadOutput if it exists or cannot be written."""
    try:
        files.write_atomic(data, path, overwrite, fsync)
    except FileExistsError as error:
        raise already_exists(path) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def with_suffix(name: str, number: int) -> str:
    """A name with a number before its suffix, from 2 on: x.png, x-2.png, …"""
    if number == 1:
        return name
    stem, suffix = os.path.splitext(name)
    return f"{stem}-{number}{suffix}"


def _write_numbered(data: bytes, path: Path, first: int) -> Path:
    """Write under the first free name with a number from `first` on. BadOutput."""
    for number in range(first, first + 1_000_000):
        free = path.with_name(with_suffix(path.name, number))
        if os.path.lexists(free):
            continue
        try:
            files.write_atomic(data, free, overwrite=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(free, error) from error
        return free
    raise already_exists(path)


def already_exists(path: Path) -> BadOutput:
    name = shown(path)
    return BadOutput(f"{name} exists; add --overwrite to replace a file, or choose another name")


def _unwritable(path: Path, error: OSError) -> BadOutput:
    return BadOutput(f"cannot write {shown(path)}: {files.reason(error)}; choose another --output")
