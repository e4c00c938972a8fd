"""The options of every command that draws, by section."""

from dataclasses import dataclass, field, replace

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
from txt2img.request.resolve import AdapterPaths


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
