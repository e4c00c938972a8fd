"""The options that draw with fewer operations, at a cost that is measured in README."""

from dataclasses import dataclass
from typing import Annotated

import typer

CfgInterval = Annotated[
    str | None,
    typer.Option(
        "--cfg-interval",
        metavar="LO..HI",
        help="Guide only from LO to HI of the way from noise (0) to picture (1): the other steps "
        "take half the time. 0..1 is all of it.",
    ),
]


@dataclass(frozen=True)
class Fewer:
    """What is asked for to be left out."""

    cfg_interval: CfgInterval = None

    def left_out(self) -> dict[str, object]:
        """What the options say of a request, by its fields. BadRequest."""
        return {} if self.cfg_interval is None else {"cfg_interval": self.cfg_interval}
