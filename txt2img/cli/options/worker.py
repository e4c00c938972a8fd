"""Options for keeping the model loaded in a worker process."""

import os
from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from txt2img.cli.worker.client import VARIABLES, seconds_in
from txt2img.errors import BadRequest
from txt2img.system.text import shown


@dataclass(frozen=True)
class WorkerOptions:
    """Options for a worker that keeps the model loaded; cli/worker/client.py reads them first."""

    section: ClassVar = "Keeping the model loaded"

    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive",
            metavar="TIME",
            help="Keep the model loaded in a worker process for later calls with --keep-alive, "
            f"until TIME after the last: 90s, 10m, 1h. {VARIABLES[0]}=TIME sets it for all calls.",
        ),
    ] = None
    no_keep_alive: Annotated[
        bool,
        typer.Option(
            "--no-keep-alive", help=f"Draw in this process, whatever {VARIABLES[0]} says."
        ),
    ] = False

    def check(self) -> None:
        """Raise BadRequest for an invalid time."""
        times = {name: os.environ.get(name) or None for name in VARIABLES}
        for name, text in {"--keep-alive": self.keep_alive, **times}.items():
            if text is not None and seconds_in(text) is None:
                raise BadRequest(f"{name} takes a time of 1s … 24h like 10m, got {shown(text)}")
