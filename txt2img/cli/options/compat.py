"""Options for drawing the same picture as another program does."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from txt2img.cli.options.types import field_option
from txt2img.request import Compat


@dataclass(frozen=True)
class CompatOptions:
    """Options for following another program's rules."""

    section: ClassVar = "Compatibility with other programs"

    compat: Annotated[
        str | None,
        field_option(
            "compat",
            metavar="NAME",
            help="Follow another program's rules for noise, prompt weights and timesteps: "
            f"{', '.join(Compat)}.",
        ),
    ] = None
    clip_skip: Annotated[
        int | None,
        field_option(
            "clip_skip",
            metavar="N",
            help="CLIP layer to stop at, counted from the end as A1111 does; 1 uses all layers.",
        ),
    ] = None
    subseed: Annotated[
        int | None,
        field_option(
            "subseed", metavar="N", help="Variation seed: mix in its noise, by --subseed-strength."
        ),
    ] = None
    subseed_strength: Annotated[
        float | None,
        field_option(
            "subseed_strength",
            metavar="X",
            help="Variation strength: 0 is the seed's noise, 1 the variation seed's.",
        ),
    ] = None
    ensd: Annotated[
        int | None,
        field_option(
            "ensd",
            metavar="N",
            seldom=True,
            help="A1111's eta noise seed delta: draw the steps' noise with seed + N.",
        ),
    ] = None
    rng: Annotated[
        str | None,
        field_option(
            "rng",
            metavar="cpu|nv[:N]",
            seldom=True,
            help="Random number generator: the CPU's, or an Nvidia GPU's (of N threads), computed "
            "without one. A second one after a comma is for the steps' noise.",
        ),
    ] = None
