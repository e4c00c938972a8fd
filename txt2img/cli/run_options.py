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
