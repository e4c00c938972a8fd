"""The options for what file a picture becomes: its format, and how much of it is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.types import whole
from txt2img.errors import BadRequest
from txt2img.images import exif, formats
from txt2img.images.formats import FORMATS, PNG, QUALITIES, Format
from txt2img.system.text import shown

FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        autocompletion=completion.formats,
        help=f"One of {', '.join(FORMATS)}; png loses nothing. A file's name with -o tells too.",
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        "--quality",
        metavar="N",
        parser=whole("--quality"),
        help="1 … 100: how much jpeg, webp and avif keep; webp loses nothing at 100.",
    ),
]


@dataclass(frozen=True)
class OutputOptions:
    """What the options ask of a picture's file."""

    format: FormatName = None
    quality: Quality = None

    def picture_format(self, out: str | None, said: Callable[[str], bool]) -> Format:
        """The format of the pictures that go to `out`. BadRequest.

        What is not `said` on the command line comes from a config file, and gives way.
        """
        asked = None if self.format is None else formats.named(self.format)
        told = formats.of(out or "")
        if told and (str(out).endswith("/") or Path(str(out)).is_dir()):
            told = None
        if asked and told and asked.name != told.name and said("format"):
            raise BadRequest(f"--format {shown(self.format)} and -o {shown(out)}; give one of them")
        form = told or asked or PNG
        exif.check(form)
        if self.quality is None:
            return form
        if self.quality not in QUALITIES:
            raise BadRequest(f"--quality must be 1 … {QUALITIES[-1]}, got {self.quality}")
        if form.quality is None:
            if said("quality"):
                raise BadRequest("--quality is for jpeg, webp and avif: png loses nothing")
            return form
        return replace(form, quality=self.quality)
