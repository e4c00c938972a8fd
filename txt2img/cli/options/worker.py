"""The options for a warm worker."""

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from txt2img.cli.worker.client import VARIABLES, seconds_in
from txt2img.errors import BadRequest
from txt2img.system.text import shown

Warm = Annotated[
    str | None,
    typer.Option(
        "--warm",
        metavar="TIME",
        help="Leave the model in memory for calls with --warm to come, until none came for TIME: "
        "90s, 10m, 1h. TXT2IMG_WARM=TIME says so for all.",
    ),
]
NoWarm = Annotated[
    bool, typer.Option("--no-warm", help="Draw in this process, whatever TXT2IMG_WARM says.")
]


@dataclass(frozen=True)
class WorkerOptions:
    """What the options for a warm worker ask for; who calls has read them before all others."""

    warm: Warm = None
    no_warm: NoWarm = False

    def check(self) -> None:
        """Raise BadRequest for a time that is none."""
        times = {name: os.environ.get(name) or None for name in VARIABLES}
        for name, text in {"--warm": self.warm, **times}.items():
            if text is not None and seconds_in(text) is None:
                raise BadRequest(f"{name} takes a time of 1s … 24h like 10m, got {shown(text)}")
