"""The options that draw with fewer operations, at a cost that is measured in README."""

from dataclasses import dataclass, fields
from typing import Annotated

import typer

from txt2img.cli.options.types import number, whole

CfgInterval = Annotated[
    str | None,
    typer.Option(
        "--cfg-interval",
        metavar="LO..HI",
        help="Guide only from LO to HI of the way from noise (0) to picture (1): the other steps "
        "take half the time. 0..1 is all of it.",
    ),
]

Reuse = Annotated[
    int | None,
    typer.Option(
        "--reuse",
        metavar="N",
        parser=whole("--reuse"),
        help="Compute the U-Net's deep layers in every N-th step only (DeepCache): 3 draws about "
        "2.5 times as fast and changes the picture a little. 1 is each step.",
    ),
]
TokenMerging = Annotated[
    float | None,
    typer.Option(
        "--token-merging",
        metavar="RATIO",
        parser=number("--token-merging"),
        help="Let so much of the largest maps attend as one with what is like it: 0 … 0.75. For "
        "pictures of 512 pixels and more.",
    ),
]


@dataclass(frozen=True)
class SpeedOptions:
    """What is asked for to be left out."""

    cfg_interval: CfgInterval = None
    reuse: Reuse = None
    token_merging: TokenMerging = None

    def speed_fields(self) -> dict[str, object]:
        """What the options say of a request, by its fields. BadRequest."""
        values = {f.name: getattr(self, f.name) for f in fields(SpeedOptions)}
        return {name: value for name, value in values.items() if value is not None}
