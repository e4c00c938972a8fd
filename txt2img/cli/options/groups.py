"""Options of every command that draws, by section of --help."""

from dataclasses import dataclass, field

from txt2img.cli.options.adapters import AdapterOptions
from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.options.picture import PictureOptions
from txt2img.cli.options.preview import PreviewOptions
from txt2img.cli.options.worker import WorkerOptions


@dataclass(frozen=True)
class RunOptions:
    """The options of a command that draws, a field for each section."""

    picture: PictureOptions = field(default_factory=PictureOptions)
    adapters: AdapterOptions = field(default_factory=AdapterOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)
    preview: PreviewOptions = field(default_factory=PreviewOptions)
    worker: WorkerOptions = field(default_factory=WorkerOptions)

    def check(self) -> None:
        """Raise BadRequest for options that contradict each other, BadOutput for taken files."""
        self.batch.check(self.output)
        self.device.check()
        self.preview.check(self.output)
        self.worker.check()

    def request_fields(self) -> dict[str, object]:
        """The fields of a request that the options give. BadRequest."""
        return {**self.picture.request_fields(), **self.adapters.request_fields()}
