"""The options for where and how exactly to compute, and for what a run may do to fit."""

from dataclasses import dataclass
from typing import Annotated

import typer

from txt2img.cli import options
from txt2img.errors import BadRequest
from txt2img.escape import shown

VaeTiling = Annotated[
    str,
    typer.Option(
        "--vae-tiling",
        metavar="auto|on|off",
        help="Decode in overlapping tiles, which takes little memory; auto: if the picture is "
        "large or memory runs out.",
    ),
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        help="Keep weights in memory as they are stored (fp16, fp8), each upcast when used.",
    ),
]


@dataclass(frozen=True)
class Precision:
    """Where and how exactly to compute."""

    device: options.DeviceName = None
    dtype: options.Dtype = None
    vae_tiling: VaeTiling = "auto"
    low_memory: LowMemory = False

    def check(self) -> None:
        """Raise BadRequest for what cannot be chosen, before anything is loaded."""
        if self.vae_tiling not in ("auto", "on", "off"):
            raise BadRequest(f"--vae-tiling {shown(self.vae_tiling)}; choose auto, on or off")
