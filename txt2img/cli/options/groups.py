"""The options of every command that draws: how pictures are drawn and kept, not what is on them."""

from dataclasses import dataclass, field

from txt2img.cli.options.batch import Batching
from txt2img.cli.options.device import Precision
from txt2img.cli.options.output import Filed
from txt2img.cli.options.picture import Asked
from txt2img.cli.options.preview import Viewing
from txt2img.cli.options.worker import Warming


@dataclass(frozen=True)
class Manner:
    """What the options ask for, by what they are about."""

    batching: Batching = field(default_factory=Batching)
    precision: Precision = field(default_factory=Precision)
    viewing: Viewing = field(default_factory=Viewing)
    filed: Filed = field(default_factory=Filed)
    warming: Warming = field(default_factory=Warming)

    def check(self, asked: Asked, json: bool) -> None:
        """Raise BadRequest for options that cannot be, BadOutput for files in their way."""
        self.batching.check(asked.out, asked.overwrite, json)
        self.precision.check()
        self.viewing.check(asked.out, asked.overwrite)
        self.warming.check()
