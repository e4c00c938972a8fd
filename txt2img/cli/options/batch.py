"""Options for batches: sweeps, wildcards, resuming, sharing work, and what to do on failure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.options.types import integer, positive
from txt2img.errors import BadRequest
from txt2img.images import checks
from txt2img.images.checks import RETRIES_MAX, FailurePolicy
from txt2img.images.resume import Item
from txt2img.system import launcher
from txt2img.system.text import shown


@dataclass(frozen=True)
class BatchOptions:
    """Options for batches: which pictures are drawn, and what happens to those that fail."""

    section: ClassVar = "Batches"

    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="OPTION=VALUES",
            autocompletion=completion.swept,
            help="Draw with each value: cfg=4..10:1.5, sampler=euler,heun, lora=style:0..1:0.25. "
            "Two sweeps: all combinations. Ends in a labelled sheet (an X/Y plot) and a CSV "
            "table.",
        ),
    ] = None
    sweep_zip: Annotated[
        bool,
        typer.Option(
            "--sweep-zip",
            hidden=True,
            help="Pair the values of several sweeps, not all combinations.",
        ),
    ] = False
    wildcards: Annotated[
        Path | None,
        typer.Option(
            "--wildcards",
            metavar="FOLDER",
            help="Replace {red|blue}, and __name__ by a line of FOLDER/name.txt, as the seed "
            "decides.",
        ),
    ] = None
    all_choices: Annotated[
        bool,
        typer.Option(
            "--all",
            help="With --wildcards: draw every combination of choices, not one by the seed.",
        ),
    ] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Skip pictures that are in the output folder already. Needs --seed. Several "
            "processes may share a folder.",
        ),
    ] = False
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N|auto",
            help="Draw only part I of N, such as 2/8; auto: the part of this job of an array of "
            "Slurm, Kubernetes or AWS Batch.",
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            parser=positive,
            help="Pictures drawn at once (default: 1; on a CUDA GPU as many as fit).",
        ),
    ] = None
    on_error: Annotated[
        str,
        typer.Option(
            "--on-error", metavar="stop|skip", help="After a picture that fails, stop or go on."
        ),
    ] = "stop"
    reject: Annotated[
        str | None,
        typer.Option(
            "--reject",
            metavar="NAMES",
            autocompletion=completion.rejections,
            help="Save no pictures that are black, or flat (of one colour): black,flat.",
        ),
    ] = None
    retries: Annotated[
        int | None,
        typer.Option(
            "--retries",
            metavar="N",
            parser=integer,
            help="Draw a rejected picture again, with up to N other seeds.",
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print names, seeds, prompts, warnings and the estimated time; draw nothing.",
        ),
    ] = False
    strict: Annotated[
        bool, typer.Option("--strict", help="Treat warnings as errors, before anything is drawn.")
    ] = False

    def check(self, output: OutputOptions) -> None:
        """Raise BadRequest for values that cannot be, or options that exclude each other."""
        if self.on_error not in ("stop", "skip"):
            raise BadRequest(f"--on-error {shown(self.on_error)}; choose stop or skip")
        if not 0 <= (self.retries or 0) <= RETRIES_MAX:
            raise BadRequest(f"--retries must be 0 … {RETRIES_MAX}, got {self.retries}")
        if self.resume and output.overwrite:
            raise BadRequest("--resume keeps existing pictures, --overwrite replaces them")
        if self.sweep_zip and not self.sweep:
            raise BadRequest("--sweep-zip goes with --sweep")
        if self.all_choices and self.wildcards is None:
            raise BadRequest("--all goes with --wildcards")
        if output.out == "-" and (self.resume or self.sweep):
            raise BadRequest(
                "-o - writes one picture to standard output; --resume and --sweep need files"
            )
        _ = self.part, self.policy

    @cached_property
    def policy(self) -> FailurePolicy:
        """The policy for pictures that fail: reject, retry, skip. BadRequest."""
        reject = () if self.reject is None else checks.parse_reject(self.reject)
        return FailurePolicy(("nan", *reject), self.retries or 0, self.on_error == "skip")

    @cached_property
    def part(self) -> tuple[int, int]:
        """The part to draw, and the number of parts. BadRequest."""
        if self.shard is None:
            return 1, 1
        if self.shard == "auto":
            return launcher.array_part()
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard, re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise BadRequest(
                f"--shard must be like 2/8, part 2 of 8, or auto; got {shown(self.shard)}"
            )
        return int(match[1]), int(match[2])

    def shard_items(self, items: Iterable[Item]) -> Iterator[Item]:
        """Every N-th picture of a batch, from the I-th."""
        part, parts = self.part
        return (item for item in items if item.index % parts == part % parts)
