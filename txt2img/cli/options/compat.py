"""The options that make a picture as another program would: its rules, and what it records."""

from dataclasses import dataclass, fields
from typing import Annotated

import typer

from txt2img.cli.options.types import number, whole

CompatName = Annotated[
    str | None,
    typer.Option(
        "--compat",
        metavar="NAME",
        help="Draw by another program's rules for noise, prompt weights and times: a1111, "
        "a1111-gpu, forge, comfyui, diffusers, sdcpp, invokeai, novelai.",
    ),
]
ClipSkip = Annotated[
    int | None,
    typer.Option(
        "--clip-skip",
        metavar="N",
        parser=whole("--clip-skip"),
        help="Stop N-1 layers before the text encoder's end, as A1111 counts; 1 is all of it.",
    ),
]
Subseed = Annotated[
    int | None,
    typer.Option(
        "--subseed",
        metavar="N",
        parser=whole("--subseed"),
        help="Mix in another seed's noise, by --subseed-strength.",
    ),
]
SubseedStrength = Annotated[
    float | None,
    typer.Option(
        "--subseed-strength",
        metavar="X",
        parser=number("--subseed-strength"),
        help="How far to go to the other seed's noise: 0 … 1.",
    ),
]
Ensd = Annotated[
    int | None,
    typer.Option(
        "--ensd",
        metavar="N",
        parser=whole("--ensd"),
        help="Eta noise seed delta, as A1111 has it: the steps' noise is that of seed + N.",
    ),
]
Rng = Annotated[
    str | None,
    typer.Option(
        "--rng",
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

    def request_fields(self) -> dict[str, object]:
        """What the options say of a request, by its fields."""
        values = {f.name: getattr(self, f.name) for f in fields(CompatOptions)}
        return {name: value for name, value in values.items() if value is not None}
