"""Settings of a run, from its options: where pictures go, and how the batch is drawn."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.options.groups import RunOptions
from txt2img.cli.options.preview import PreviewOptions
from txt2img.cli.terminal.console import log, print_bytes
from txt2img.cli.terminal.streams import CLOSED
from txt2img.errors import BadRequest
from txt2img.images import output
from txt2img.images.formats import PNG, Format
from txt2img.images.output import Output
from txt2img.request.sweep import LORAS, axis
from txt2img.system.text import shown

if TYPE_CHECKING:
    from txt2img.images.image_folder import ImageFolders

SOME_FAILED = 3  # exit code


@dataclass(frozen=True)
class RunSettings:
    """Settings for drawing a batch and writing its pictures."""

    target: Output
    batch: BatchOptions
    batch_size: int  # 0: as many as fit on the device
    device: DeviceOptions
    preview: PreviewOptions
    quiet: bool
    json: bool
    save_latents: bool

    def note(self, line: str) -> None:
        """Log a line, unless --quiet is set."""
        if not self.quiet:
            log(line)


def _name_by_values(pattern: str, sweep: Sequence[str], form: Format) -> str:
    """A default pattern with a token for each swept option.

    What is rarely in a name stands after the option's: -clip-skip2; a LoRA has a name of its own.
    """
    fields = [axis(text).field for text in sweep]
    plain = (*output.TOKENS, LORAS)
    more = [
        f"-{{{name}}}" if name in plain else f"-{name.replace('_', '-')}{{{name}}}"
        for name in fields
        if f"{{{name}}}" not in pattern
    ]
    return pattern.replace(form.suffix, "".join(more) + form.suffix)


def output_target(
    options: RunOptions,
    several: bool,
    context: typer.Context,
    folders: "ImageFolders | None" = None,
) -> Output:
    """The output that -o, --format and --quality ask for. BadRequest.

    Pictures that begin from those of `folders` are named after them, and go elsewhere.
    """

    def is_explicit(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    out, batch = options.output.out, options.batch
    form = options.output.picture_format(is_explicit)
    if out != "-":
        target = output.parse(out, several, options.output.overwrite, form)
        target.resume = batch.resume
        if folders is not None:
            check_elsewhere(target.folder, folders.folders)
        if target.pattern == (default := output.default_pattern(form)):
            named = f"{folders.pattern}{form.suffix}" if folders and folders.pattern else default
            target.pattern = _name_by_values(named, batch.sweep or (), form)
        return target
    check_stdout(several)
    return StdoutOutput(form)


def check_elsewhere(folder: Path, sources: Sequence[Path]) -> None:
    """Raise BadRequest if results would lie among the pictures that they begin from.

    The next run would take them for more of those.
    """
    same = [source for source in sources if folder.exists() and folder.samefile(source)]
    if same:
        raise BadRequest(
            f"the results would lie among the pictures of {shown(str(same[0]))}; name another "
            "folder with -o, as -o drawn/"
        )


def check_stdout(several: bool) -> None:
    """Raise BadRequest unless one picture can be written to standard output."""
    if several:
        raise BadRequest("-o - writes one picture to standard output; name a folder for several")
    if 1 in CLOSED:
        raise BadRequest("-o - writes to standard output, which is closed; name a file instead")
    if sys.stdout.isatty():
        raise BadRequest("-o - would fill the terminal with a picture's bytes; pipe it on")


class StdoutOutput(Output):
    """Standard output, for one picture that becomes no file."""

    def __init__(self, form: Format = PNG) -> None:
        super().__init__(Path(), "-", exact=True, format=form)

    def _prepare(self) -> None:
        """Do nothing: there is no folder."""

    def check_name_free(self) -> None:
        """Do nothing: there is no file that could exist."""

    def write_as(self, data: bytes, name: str, number: int = 1) -> Path:
        """Write the picture. The path returned is "-"."""
        print_bytes(data)
        return Path("-")
