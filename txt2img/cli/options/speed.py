"""Options for faster approximations, which change the picture a little."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from txt2img.cli.options.types import field_option


@dataclass(frozen=True)
class SpeedOptions:
    """Which operations to leave out."""

    section: ClassVar = "Speed"

    deepcache: Annotated[
        int | None,
        field_option(
            "reuse",
            metavar="N",
            help="Compute the U-Net's deep layers in every N-th step only (DeepCache): faster, "
            "with small changes to the picture. 1 is every step.",
        ),
    ] = None
    cfg_interval: Annotated[
        str | None,
        field_option(
            "cfg_interval",
            metavar="LO..HI",
            help="Apply guidance only between these fractions of the way from noise (0) to picture "
            "(1); other steps take half the time. 0..1 is all of it.",
        ),
    ] = None
    token_merging: Annotated[
        float | None,
        field_option(
            "token_merging",
            metavar="RATIO",
            help="Merge this fraction of similar tokens in the largest attention layers (ToMe), 0 "
            "to 0.75. For pictures of 512 pixels and more.",
        ),
    ] = None
