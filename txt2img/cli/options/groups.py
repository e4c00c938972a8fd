"""The options of every command that draws: how pictures are drawn and kept, not what is on them."""

from dataclasses import dataclass, field

from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.options.picture import PictureOptions
from txt2img.cli.options.preview import PreviewOptions
from txt2img.cli.options.worker import WorkerOptions


@dataclass(frozen=True)
class RunOptions:
    """What the options ask for, by what they are about."""

    batching: BatchOptions = field(default_factory=BatchOptions)
    precision: DeviceOptions = field(default_factory=DeviceOptions)
    viewing: PreviewOptions = field(default_factory=PreviewOptions)
    filed: OutputOptions = field(default_factory=OutputOptions)
    warming: WorkerOptions = field(default_factory=WorkerOptions)

    def check(self, asked: PictureOptions, json: bool) -> None:
        """Raise BadRequest for options that cannot be, BadOutput for files in their way."""
        self.batching.check(asked.out, asked.overwrite, json)
        self.precision.check()
        self.viewing.check(asked.out, asked.overwrite)
        self.warming.check()
