"""txt2img train: a model from pictures with captions."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.names import Command
from txt2img.cli.options.output import Quiet
from txt2img.cli.options.types import integer, number, positive
from txt2img.cli.terminal.console import log, print_path, progress
from txt2img.errors import BadRequest
from txt2img.system.text import shown

EPILOG = """
\b
Examples:
  txt2img train pictures/ --out my-model --size 64 --steps 20000
  txt2img train pictures.zip --out my-model --config my.toml --stage unet
  txt2img "a red apple" --model my-model

The data is a folder or .zip of pictures with a metadata.jsonl of lines such as
{"file_name": "apple.png", "text": "a red apple"}. A run that was stopped goes
on from its last checkpoint.
"""
STAGES = ("vae", "text", "unet", "decoder", "distil", "all")

Data = Annotated[
    Path | None,
    typer.Argument(metavar="DATA", help="Folder or .zip of pictures.", show_default=False),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FOLDER", help="Where the model goes; needed.")
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="All settings, as a TOML file.")
]
What = Annotated[
    str | None,
    typer.Option("--stage", metavar="STAGE", help="vae, text, unet, decoder, distil or all."),
]
Steps = Annotated[
    int | None,
    typer.Option("--steps", metavar="N", parser=positive, help="Steps of each part."),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", parser=positive, help="Pictures a step."),
]
Rate = Annotated[
    float | None,
    typer.Option("--lr", metavar="X", parser=number, help="Highest learning rate."),
]
Size = Annotated[
    int | None,
    typer.Option("--size", metavar="PIXELS", parser=positive, help="Pictures' side."),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", parser=integer, help="Of all chance.")
]
Resume = Annotated[
    bool | None,
    typer.Option("--resume/--no-resume", help="Go on from a checkpoint in FOLDER, or anew."),
]
SampleEvery = Annotated[
    int | None,
    typer.Option(
        "--sample-every",
        metavar="N",
        parser=positive,
        help="Steps from one sheet of samples to the next.",
    ),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        "--save-every",
        metavar="N",
        parser=positive,
        help="Steps from one checkpoint to the next.",
    ),
]
StopAfter = Annotated[
    float | None,
    typer.Option(
        "--stop-after",
        metavar="MINUTES",
        parser=number,
        help="Save and stop then; the same line goes on.",
    ),
]
DeviceName = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cuda, mps or cpu.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="NAME", help="Precision: float32, bf16 or fp16.")
]
FIELDS = (
    *("data", "out", "what", "steps", "batch_size", "lr", "size", "seed", "resume"),
    *("sample_every", "save_every", "stop_after", "device", "dtype"),
)


def train(
    context: typer.Context,
    data: Data = None,
    out: Out = None,
    config: Config = None,
    what: What = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    size: Size = None,
    seed: Seed = None,
    resume: Resume = None,
    sample_every: SampleEvery = None,
    save_every: SaveEvery = None,
    stop_after: StopAfter = None,
    device: DeviceName = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Train a model on pictures with captions. Prints the model's folder when done."""
    if config is None and (data is None or out is None):
        raise BadRequest("what to train on, and where to? txt2img train DATA --out FOLDER")
    if what is not None and what not in STAGES:
        raise BadRequest(f"no part {shown(what)}; choose from {', '.join(STAGES)}")
    if data is not None and not data.exists():
        raise BadRequest(f"no data at {shown(str(data))}; name a folder or a .zip of pictures")
    given = {name: context.params[name] for name in FIELDS if context.params[name] is not None}
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks for all
    folder = fit(config, given, quiet or not first)
    if first:
        print_path(folder)


def fit(config: Path | None, given: dict[str, object], quiet: bool) -> Path:
    """Run the training, with progress on the terminal; gives the model's folder."""
    with progress(not quiet, "loading") as bar:
        from txt2img.train.config import override, read
        from txt2img.train.loop import fit as steps
        from txt2img.train.loop import is_whole

        settings = override(read(config), given)
        stage, told = "", 0.0
        for report in steps(settings):
            line = f"loss {report.loss:.4f}  {report.images_per_second:.1f} img/s"
            bar.advance(
                report.stage, report.step, report.steps, f"{report.step}/{report.steps} {line}"
            )
            new_stage, stage = report.stage != stage, report.stage
            if new_stage and report.plain:
                with bar.paused():
                    log(f"Warning: {stage} runs uncompiled, since compiled here: {report.plain}")
            due = not bar.visible and time.monotonic() - told > 30
            last = report.step == report.steps
            if not quiet and (report.sheet or last or ((due or new_stage) and not bar.visible)):
                with bar.paused():
                    sheet = f"  {report.sheet}" if report.sheet else ""
                    log(f"{report.stage} {report.step}/{report.steps} {line}{sheet}")
                told = time.monotonic()
        if settings.stop_after is not None and not quiet and not is_whole(settings):
            log(f"stopped after {settings.stop_after:g} minutes; the same line goes on from here")
    return settings.out


COMMAND: Command = train, EPILOG
