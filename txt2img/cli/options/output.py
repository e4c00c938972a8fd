"""The options for what file a picture becomes: its format, and how much of it is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options import completion, types
from txt2img.cli.options.types import whole
from txt2img.errors import BadRequest
from txt2img.images import formats
from txt2img.images.formats import FORMATS, LOSSY, PNG, QUALITIES, Format
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
        help=f"1 … 100: how much {LOSSY} keep; webp loses nothing at 100.",
    ),
]


@dataclass(frozen=True)
class OutputOptions:
    """What the options ask of a picture's file."""

    out: types.OutputName = None
    overwrite: types.Overwrite = False
    format: FormatName = None
    quality: Quality = None
    quiet: types.Quiet = False
    json: types.Json = False

    def picture_format(self, said: Callable[[str], bool]) -> Format:
        """The format of the pictures, by --format or the name of --output. BadRequest.

        What is not `said` on the command line comes from a config file, and gives way.
        """
        asked = None if self.format is None else formats.by_name(self.format)
        out = self.out or ""
        is_folder = out.endswith("/") or Path(out).is_dir()
        by_name = None if is_folder else formats.by_suffix(out)
        if asked and by_name and asked.name != by_name.name and said("format"):
            raise BadRequest(f"--format {shown(self.format)} and -o {shown(out)}; give one of them")
        form = by_name or asked or PNG
        formats.check_writable(form)
        if self.quality is None:
            return form
        if self.quality not in QUALITIES:
            raise BadRequest(f"--quality must be 1 … {QUALITIES[-1]}, got {self.quality}")
        if form.quality is None:
            if said("quality"):
                raise BadRequest(f"--quality is for {LOSSY}: png loses nothing")
            return form
        return replace(form, quality=self.quality)
