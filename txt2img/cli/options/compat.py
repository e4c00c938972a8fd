"""The options that make a picture as another program would: its rules, and what it records."""

from dataclasses import dataclass
from typing import Annotated

from txt2img.cli.options.types import field_option

CompatName = Annotated[
    str | None,
    field_option(
        "compat",
        metavar="NAME",
        help="Draw by another program's rules for noise, prompt weights and times: a1111, "
        "a1111-gpu, forge, comfyui, diffusers, sdcpp, invokeai, novelai.",
    ),
]
ClipSkip = Annotated[
    int | None,
    field_option(
        "clip_skip",
        metavar="N",
        help="Stop N-1 layers before the text encoder's end, as A1111 counts; 1 is all of it.",
    ),
]
Subseed = Annotated[
    int | None,
    field_option(
        "subseed",
        metavar="N",
        help="Mix in another seed's noise, by --subseed-strength.",
    ),
]
SubseedStrength = Annotated[
    float | None,
    field_option(
        "subseed_strength",
        metavar="X",
        help="How far to go to the other seed's noise: 0 … 1.",
    ),
]
Ensd = Annotated[
    int | None,
    field_option(
        "ensd",
        metavar="N",
        help="Eta noise seed delta, as A1111 has it: the steps' noise is that of seed + N.",
    ),
]
Rng = Annotated[
    str | None,
    field_option(
        "rng",
        metavar="cpu|nv[:N]",
        help="Where random numbers come from: the processor, or as from an Nvidia card (of N "
        "threads), which is not needed for it; after a comma, those of the steps.",
    ),
]


@dataclass(frozen=True)
class CompatOptions:
    """What the options for other programs' rules ask for."""

    compat: CompatName = None
    clip_skip: ClipSkip = None
    subseed: Subseed = None
    subseed_strength: SubseedStrength = None
    ensd: Ensd = None
    rng: Rng = None
