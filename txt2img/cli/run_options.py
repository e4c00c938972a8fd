"""Options of a run, and its settings made from them: where pictures go, how they are drawn."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from txt2img.cli.options.adapters import AdapterOptions
from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.options.compat import CompatOptions
from txt2img.cli.options.control import ControlOptions
from txt2img.cli.options.device import DeviceOptions, WorkerOptions
from txt2img.cli.options.enhance import EnhanceOptions
from txt2img.cli.options.input import InputOptions
from txt2img.cli.options.larger import LargerOptions
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.options.picture import GuidanceOptions, PictureOptions
from txt2img.cli.options.preview import PreviewOptions
from txt2img.cli.options.speed import SpeedOptions
from txt2img.cli.options.types import given_fields
from txt2img.cli.terminal.console import CLOSED, log, print_bytes
from txt2img.errors import BadRequest
from txt2img.images import output
from txt2img.images.formats import PNG, Format
from txt2img.images.output import Output
from txt2img.request.resolve import AdapterPaths
from txt2img.request.sweep import LORAS, axis
from txt2img.system.text import shown

if TYPE_CHECKING:
    from txt2img.images.image_folder import ImageFolders


SOME_FAILED = 3  # exit code


@dataclass(frozen=True)
class RunOptions:
    """All options of a run, in the order of --help."""

    picture: PictureOptions = field(default_factory=PictureOptions)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    input: InputOptions = field(default_factory=InputOptions)
    control: ControlOptions = field(default_factory=ControlOptions)
    larger: LargerOptions = field(default_factory=LargerOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    enhance: EnhanceOptions = field(default_factory=EnhanceOptions)
    compat: CompatOptions = field(default_factory=CompatOptions)
    preview: PreviewOptions = field(default_factory=PreviewOptions)
    speed: SpeedOptions = field(default_factory=SpeedOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    worker: WorkerOptions = field(default_factory=WorkerOptions)

    def check(self) -> None:
        """Raise BadRequest for options that cannot be, BadOutput for existing files in the way."""
        self.output.check()
        self.batch.check(self.output)
        self.device.check()
        self.preview.check(self.output)
        self.worker.check()

    def library(self) -> AdapterPaths:
        """The files and folders that requests name. ModelNotFound, BadRequest."""
        library = self.adapters.library()
        if self.input.image_dir:
            library = self.input.with_places(library)
        if self.control.ip_encoder:
            library = self.control.with_encoders(library)
        if self.larger != LargerOptions():
            library = replace(library, upscalers=self.larger.files())
        return library

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request. ModelNotFound, BadRequest."""
        return (
            self.picture.request_fields()
            | given_fields(self.guidance)
            | self.adapters.request_fields()
            | given_fields(self.input)
            | ({"references": self.input.reference} if self.input.reference else {})
            | (self.control.request_fields() if self.control != ControlOptions() else {})
            | given_fields(self.compat)
            | given_fields(self.speed)
            | (self.larger.request_fields() if self.larger != LargerOptions() else {})
        )


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
    own_tokens = (*output.TOKENS, LORAS)
    tokens = [
        f"-{{{name}}}" if name in own_tokens else f"-{name.replace('_', '-')}{{{name}}}"
        for name in fields
        if f"{{{name}}}" not in pattern
    ]
    return pattern.replace(form.suffix, "".join(tokens) + form.suffix)


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
            f"the results would lie among the pictures of {shown(same[0])}; name another "
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
