"""Settings of a run, from the options of its command line."""

from dataclasses import dataclass

from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.options.preview import PreviewOptions
from txt2img.cli.terminal.console import log
from txt2img.images.output import Output

SOME_FAILED = 3  # exit code


@dataclass(frozen=True)
class RunSettings:
    """How a wish is to be carried out."""

    target: Output
    batching: BatchOptions
    batch_size: int  # 0: what the device has room for
    precision: DeviceOptions
    quiet: bool
    json: bool
    viewing: PreviewOptions

    def note(self, line: str) -> None:
        """A remark, unless none are wanted."""
        if not self.quiet:
            log(line)
