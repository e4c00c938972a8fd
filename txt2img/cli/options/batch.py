"""The options for batches: where prompts come from, what is done again, what to do on failure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options import types
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.options.types import whole
from txt2img.errors import BadRequest
from txt2img.images import checks
from txt2img.images.checks import RETRIES_MAX, FailurePolicy
from txt2img.images.resume import Item
from txt2img.system.text import shown

Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Skip the pictures that the output folder has already, told by what their files say, "
        "and draw the rest. Several processes may share a folder.",
    ),
]
Shard = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Draw the I-th of N parts only: 2/8.")
]
WildcardsFolder = Annotated[
    Path | None,
    typer.Option(
        "--wildcards",
        metavar="FOLDER",
        help="Let the seed choose in prompts: {red|blue}, and __name__ for a line of "
        "FOLDER/name.txt.",
    ),
]
SweepAxes = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="OPTION=VALUES",
        help="Draw with each value: cfg=4..10:1.5, sampler=euler,heun, lora=style:0..1:0.25. "
        "Given twice: with all pairs. Ends in a labelled sheet and a table.",
    ),
]
Zip = Annotated[
    bool, typer.Option("--zip", help="Go through the sweeps side by side, not with all pairs.")
]
OnError = Annotated[
    str,
    typer.Option(
        "--on-error", metavar="stop|skip", help="What a picture that fails does to the others."
    ),
]
Reject = Annotated[
    str | None,
    typer.Option(
        "--reject",
        metavar="NAMES",
        help="What not to save: black, flat (one colour); nan never is.",
    ),
]
Retries = Annotated[
    int | None,
    typer.Option(
        "--retries",
        metavar="N",
        parser=whole("--retries"),
        help="Draw a rejected picture again, with up to N new seeds.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say names, seeds, prompts, warnings, how long it will take; draw nothing.",
    ),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Take every warning for an error, before anything is drawn."),
]
KeepLatents = Annotated[
    bool,
    typer.Option(
        "--keep-latents", help="Keep each picture's latent beside it, for txt2img decode."
    ),
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="Show no bar.")]


@dataclass(frozen=True)
class BatchOptions:
    """What the options for batches ask for."""

    wildcards: WildcardsFolder = None
    sweep: SweepAxes = None
    zip: Zip = False
    resume: Resume = False
    shard: Shard = None
    on_error: OnError = "stop"
    reject: Reject = None
    retries: Retries = None
    dry_run: DryRun = False
    strict: Strict = False
    no_progress: NoProgress = False
    batch_size: types.BatchSize = None
    keep_latents: KeepLatents = False

    def check(self, output: OutputOptions) -> None:
        """Raise BadRequest for options that cannot be, or not together."""
        if self.on_error not in ("stop", "skip"):
            raise BadRequest(f"--on-error {shown(self.on_error)}; choose stop or skip")
        if not 0 <= (self.retries or 0) <= RETRIES_MAX:
            raise BadRequest(f"--retries must be 0 … {RETRIES_MAX}, got {self.retries}")
        if self.resume and output.overwrite:
            raise BadRequest("--resume keeps what is there, --overwrite replaces it; give one")
        if self.zip and not self.sweep:
            raise BadRequest("--zip goes with --sweep")
        if output.out == "-" and (output.json or self.resume or self.sweep):
            raise BadRequest("-o - writes one picture to standard output, and nothing else does")
        if output.out == "-" and self.keep_latents:
            raise BadRequest("--keep-latents needs files to be beside; name a folder with -o")
        _ = self.part, self.policy

    @cached_property
    def policy(self) -> FailurePolicy:
        """What is done with pictures that fail. BadRequest."""
        reject = () if self.reject is None else checks.parse_reject(self.reject)
        return FailurePolicy(("nan", *reject), self.retries or 0, self.on_error == "skip")

    @cached_property
    def part(self) -> tuple[int, int]:
        """Which of how many parts of a batch is to be drawn. BadRequest."""
        if self.shard is None:
            return 1, 1
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard, re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise BadRequest(f"--shard must be like 2/8, part 2 of 8; got {shown(self.shard)}")
        return int(found[1]), int(found[2])

    def shard_items(self, items: Iterable[Item]) -> Iterator[Item]:
        """Every n-th picture of a batch: this part's."""
        part, parts = self.part
        return (item for item in items if item.index % parts == part % parts)
