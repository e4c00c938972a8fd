"""Options for output: the files' names, format and quality, and what goes to standard output."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.types import integer
from txt2img.errors import BadRequest
from txt2img.images import formats
from txt2img.images.formats import FORMATS, LOSSY, PNG, QUALITIES, Format
from txt2img.system.text import shown

OutputName = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="A folder/, a file.png, or a pattern such as art/{prompt}-{seed}.png; - is standard "
        "output. For several pictures, a name without an extension is a folder.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON record per picture instead of its path.")
]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        autocompletion=completion.formats,
        help=f"{', '.join(FORMATS)} (default: that of the name in -o, or png, which is lossless).",
    ),
]
Quality = Annotated[
    int | None,
    typer.Option(
        "--quality",
        metavar="N",
        parser=integer,
        help=f"Quality of {LOSSY}, 1 to 100; webp is lossless at 100.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print paths and errors only.")]


@dataclass(frozen=True)
class OutputOptions:
    """Options for the place and format of pictures."""

    section: ClassVar = "Output"

    output: OutputName = None
    folder: Annotated[
        str | None, typer.Option("--outdir", "--output-dir", "--out-dir", hidden=True)
    ] = None  # as in other programs
    overwrite: Overwrite = False
    format: FormatName = None
    quality: Quality = None
    save_latents: Annotated[
        bool,
        typer.Option(
            "--save-latents", help="Save each picture's latent beside it, for txt2img decode."
        ),
    ] = False
    json: Json = False
    quiet: Quiet = False

    @property
    def out(self) -> str | None:
        """The file, pattern, folder/ or - of -o."""
        return self.output if self.folder is None else f"{self.folder}/"

    def check(self) -> None:
        """Raise BadRequest for options that exclude each other."""
        if self.output is not None and self.folder is not None:
            raise BadRequest("--output and --outdir; give one of them")
        if self.out == "-" and self.json:
            raise BadRequest("-o - writes one picture to standard output, and nothing else does")
        if self.out == "-" and self.save_latents:
            raise BadRequest("--save-latents needs files to be beside; name a folder with -o")

    def picture_format(self, on_command_line: Callable[[str], bool]) -> Format:
        """The format of the pictures. BadRequest.

        An option that is not `on_command_line` comes from config.toml, and gives way to -o.
        """
        chosen = None if self.format is None else formats.by_name(self.format)
        out = self.out or ""
        is_folder = out.endswith("/") or Path(out).is_dir()
        named = None if is_folder else formats.by_suffix(out)
        if chosen and named and chosen.name != named.name and on_command_line("format"):
            raise BadRequest(f"--format {shown(self.format)} and -o {shown(out)}; give one of them")
        form = named or chosen or PNG
        formats.check_writable(form)
        if self.quality is None:
            return form
        if self.quality not in QUALITIES:
            raise BadRequest(f"--quality must be 1 … {QUALITIES[-1]}, got {self.quality}")
        if form.quality is None:
            if on_command_line("quality"):
                raise BadRequest(f"--quality is for {LOSSY}; {form.suffix[1:]} has none")
            return form
        return replace(form, quality=self.quality)
