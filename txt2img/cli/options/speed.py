"""The options that draw with fewer operations, at a cost that is measured in README."""

from dataclasses import dataclass
from typing import Annotated

from txt2img.cli.options.types import field_option

CfgInterval = Annotated[
    str | None,
    field_option(
        "cfg_interval",
        metavar="LO..HI",
        help="Guide only from LO to HI of the way from noise (0) to picture (1): the other steps "
        "take half the time. 0..1 is all of it.",
    ),
]

Reuse = Annotated[
    int | None,
    field_option(
        "reuse",
        metavar="N",
        help="Compute the U-Net's deep layers in every N-th step only (DeepCache): 3 draws about "
        "2.5 times as fast and changes the picture a little. 1 is each step.",
    ),
]
TokenMerging = Annotated[
    float | None,
    field_option(
        "token_merging",
        metavar="RATIO",
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
