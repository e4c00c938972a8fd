"""Commands over picture files: the files of names and folders, and a result written for each."""

import glob
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from txt2img.cli import distributed
from txt2img.cli.options.output import (
    FormatName,
    Json,
    OutputName,
    OutputOptions,
    Overwrite,
    Quality,
    Quiet,
)
from txt2img.cli.run_options import StdoutOutput, check_stdout
from txt2img.cli.terminal.console import Bar, log, print_json, print_path
from txt2img.cli.terminal.results import print_file_error
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.images import formats, image_file, output
from txt2img.images.image_file import FILE_MAX
from txt2img.images.input_image import InputImage, open_image
from txt2img.images.output import Output
from txt2img.images.record import ImageInfo, pixels_sha256
from txt2img.request import Request
from txt2img.system import launcher
from txt2img.system.files import read_bounded, reason
from txt2img.system.text import shown

if TYPE_CHECKING:
    from PIL import Image

STDIO = "-"
SUFFIXES = (*(suffix for form in formats.FORMATS.values() for suffix in form.suffixes),)
SUFFIXES += (".gif", ".bmp", ".tif", ".tiff")
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE", help="Pictures, folders of them, or - for standard input."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Skip pictures whose result is there.")]


@dataclass(frozen=True)
class Source:
    """A picture that was read: its name, its place among all, and what it says of itself."""

    name: str
    number: int  # from 0 on
    count: int
    image: InputImage
    info: ImageInfo

    @property
    def label(self) -> str:
        """The name on a progress bar; empty for a single picture."""
        return Path(self.name).name if self.count > 1 else ""


@dataclass(frozen=True)
class Made:
    """What was made of a picture: the result, its texts, and its facts for --json."""

    image: "Image.Image"
    texts: Mapping[str, str]
    facts: Mapping[str, object]


@dataclass(frozen=True)
class FileRun:
    """Where the results of a run go, and what is done about those that are there."""

    options: OutputOptions
    format: formats.Format
    resume: bool
    count: int
    ending: str  # of a result's name beside its picture: -2x

    def target(self, name: str) -> Output:
        """Where the result of a picture goes: to --output, or next to it. BadRequest."""
        options = self.options
        if options.out == STDIO:
            return StdoutOutput(self.format)
        if options.out is not None:
            return output.parse(options.out, self.count > 1, options.overwrite, self.format)
        folder = Path() if name == STDIO else Path(name).parent
        pattern = output.default_pattern(self.format)
        return Output(folder, pattern, overwrite=options.overwrite, format=self.format)

    def file_name(self, target: Output, name: str, request: Request | None, index: int) -> str:
        """The file's name: that of the picture with the ending, unless --output says another."""
        if target.pattern != output.default_pattern(target.format):
            return target.name(request or Request(""), index)
        stem = "picture" if name == STDIO else Path(name).stem
        return f"{stem}{self.ending}{target.format.suffix}"


@dataclass(frozen=True)
class ResultOptions:
    """Options for the results of picture files."""

    output: OutputName = None
    format: FormatName = None
    quality: Quality = None
    overwrite: Overwrite = False
    resume: Resume = False
    json: Json = False
    quiet: Quiet = False

    def run(self, names: Sequence[str], ending: str) -> FileRun:
        """The run over these pictures. BadRequest."""
        if self.resume and self.overwrite:
            raise BadRequest("--resume keeps existing pictures, --overwrite replaces them")
        options = OutputOptions(
            output=self.output,
            overwrite=self.overwrite,
            format=self.format,
            quality=self.quality,
            json=self.json,
            quiet=self.quiet,
        )
        options.check()
        form = options.picture_format(lambda name: True)
        if options.out == STDIO:
            check_stdout(len(names) > 1)
        return FileRun(options, form, self.resume, len(names), ending)


def write_each(
    names: Sequence[str], run: FileRun, make: Callable[[Source], Made], bar: Bar
) -> None:
    """Make and write a result of each picture; print its path, or an error and go on.

    Raises typer.Exit with the code of the first error.
    """
    code = 0
    for number, name in launcher.current().shard(enumerate(names)):
        try:
            _write_one(name, number, run, make, bar)
        except Txt2imgError as error:
            with bar.paused():
                print_file_error(name, error, run.options.json)
            code = code or error.exit_code
    if code := distributed.gather_results(code, None)[0]:
        raise typer.Exit(code)


def pictures(names: Sequence[str], result: str) -> Iterator[str]:
    """The pictures of these names: files, those in folders, and what patterns match. BadFile.

    Folders' pictures that are results, whose names' endings match the pattern `result`, as
    apple-2x.png beside apple.png, are left out.
    """
    for name in names:
        if name != STDIO and not os.path.lexists(name) and glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise BadFile(f"no picture matches {shown(name)}")
            yield from matches
        elif os.path.isdir(name):
            yield from _folder_pictures(Path(name), result)
        else:
            yield name


def _folder_pictures(folder: Path, result: str) -> Iterator[str]:
    """The pictures in a folder by name, without results that lie beside them. BadFile."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name[:1] != ".")
    except OSError as error:
        raise BadFile(f"cannot read {shown(folder)}: {reason(error)}") from error
    named = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not named:
        raise BadFile(f"{shown(folder)} has no pictures")
    stems = {path.stem for path in named}
    for path in named:
        match = re.fullmatch(rf"(.+){result}(?:-\d+)?", path.stem, re.DOTALL)
        if match is None or match[1] not in stems:
            yield str(path)


def _write_one(
    name: str, number: int, run: FileRun, make: Callable[[Source], Made], bar: Bar
) -> None:
    started, content = time.perf_counter(), _read(name)
    image = open_image(BytesIO(content), name)
    source = Source(name, number, run.count, image, _read_texts(content, name))
    target = run.target(name)
    file_name = run.file_name(target, name, source.info.request, number + 1)
    if run.resume and os.path.lexists(target.folder / file_name):
        return
    with target:
        made = make(source)
        _check_transparency(made.image, target.format)
        encoded = image_file.encode_texts(made.image, dict(made.texts), target.format)
        path = target.write_as(encoded, file_name)
    with bar.paused():
        for line in () if run.options.quiet else image.notes:
            log(line)
        if run.options.json:
            about = {"file": name, "path": str(path), "size": [*made.image.size], **made.facts}
            seconds = round(time.perf_counter() - started, 3)
            print_json({**about, "seconds": seconds, "pixels_sha256": pixels_sha256(made.image)})
        elif path != Path(STDIO):
            print_path(path)


def _read(name: str) -> bytes:
    """The bytes of a file, or of standard input. BadFile."""
    if name != STDIO:
        return read_bounded(Path(name), FILE_MAX)
    content = sys.stdin.buffer.read(FILE_MAX + 1)
    if not 0 < len(content) <= FILE_MAX:
        what = "nothing came" if not content else f"more than {FILE_MAX >> 20} MiB came"
        raise BadFile(f"{what} on standard input")
    return content


def _read_texts(content: bytes, name: str) -> ImageInfo:
    """What a picture says of itself: nothing if its format is none that programs write texts in."""
    try:
        return image_file.read_stream(BytesIO(content), name)
    except BadFile:
        return ImageInfo(0, 0, {})


def _check_transparency(image: "Image.Image", form: formats.Format) -> None:
    """Raise BadRequest for a transparent picture in a format that has no transparency."""
    if image.mode == "RGBA" and form.name == "JPEG":
        raise BadRequest("it is transparent in parts, which no JPEG can be; choose --format png")
