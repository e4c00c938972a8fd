"""txt2img train: train a model, a LoRA, an embedding or a ControlNet on pictures with captions."""

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.command import grouped
from txt2img.cli.options.completion import ADAPTERS, STAGES
from txt2img.cli.options.output import Quiet
from txt2img.cli.options.types import integer, number, positive
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import log, print_path, progress
from txt2img.errors import BadRequest
from txt2img.request.preprocess import parse_preprocess
from txt2img.system.text import shown

EPILOG = """
\b
Examples:
  txt2img train pictures/ --out my-model --size 64 --steps 20000
  txt2img train pictures.zip --out my-model --config my.toml --stage unet
  txt2img train pictures/ --lora style.safetensors --model sd15 --rank 8
  txt2img train pictures/ --embedding my-toy.safetensors --model sd15
  txt2img train pictures/ --control canny --model default --out my-control
  txt2img "a red apple" --model my-model

The data is a folder or .zip of pictures with a metadata.jsonl of lines such as
{"file_name": "apple.png", "text": "a red apple"}, or with the caption of x.png
in x.txt. A run that was stopped continues from its last checkpoint.
"""
LOG_SECONDS = 30.0  # between progress lines where there is no bar

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="All settings, as a TOML file.")
]


@dataclass(frozen=True)
class TrainOptions:
    """Settings of a training, with the names of TrainConfig's fields; None if not given."""

    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="Folder or .zip of pictures.", show_default=False),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where the model goes; for a LoRA or an embedding, its checkpoints and samples "
            "(default: beside FILE).",
        ),
    ] = None
    lora: Annotated[
        Path | None,
        typer.Option(
            "--lora", metavar="FILE", help="Train a LoRA for --model, and save it as FILE."
        ),
    ] = None
    embedding: Annotated[
        Path | None,
        typer.Option(
            "--embedding",
            metavar="FILE",
            help="Train a new word (textual inversion) for --model, and save it as FILE.",
        ),
    ] = None
    control: Annotated[
        str | None,
        typer.Option(
            "--control",
            metavar="NAME[:N,…]",
            help="Train a ControlNet, which goes to --out, on maps of the pictures: canny, "
            "lineart, … as txt2img preprocess makes them.",
        ),
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="The U-Net model to train a LoRA or an embedding for (default: the package's).",
        ),
    ] = None
    lora_rank: Annotated[
        int | None,
        typer.Option(
            "--rank", metavar="N", parser=positive, help="Rank of the LoRA (default: 16)."
        ),
    ] = None
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha", metavar="X", parser=number, help="Alpha of the LoRA (default: its rank)."
        ),
    ] = None
    vectors: Annotated[
        int | None,
        typer.Option(
            "--vectors", metavar="N", parser=positive, help="Vectors of the new word (default: 4)."
        ),
    ] = None
    init_word: Annotated[
        str | None,
        typer.Option(
            "--init-word",
            metavar="WORD",
            help="The word that the new one begins as (default: thing).",
        ),
    ] = None
    min_snr: Annotated[
        float | None,
        typer.Option(
            "--min-snr",
            metavar="GAMMA",
            parser=number,
            help="Weigh noise levels by Min-SNR with this gamma; 5 is usual (default: all alike).",
        ),
    ] = None
    caption_dropout: Annotated[
        float | None,
        typer.Option(
            "--caption-dropout",
            metavar="X",
            parser=number,
            help="Share of pictures trained without a caption (default: 0.1).",
        ),
    ] = None
    sample_prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--sample-prompt",
            metavar="TEXT",
            help="Draw this prompt on the sheets of samples. Repeatable.",
        ),
    ] = None
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            metavar="STAGE",
            help=f"{', '.join(STAGES)} or all.",
            autocompletion=completion.stages,
        ),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", parser=positive, help="Training steps, of each stage."
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", parser=positive, help="Pictures per step."),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option("--lr", metavar="X", parser=number, help="The highest learning rate."),
    ] = None
    size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="PIXELS", parser=positive, help="Side of the training pictures."
        ),
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", parser=integer, help="Random seed.")
    ] = None
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Continue from a checkpoint, or start anew."),
    ] = None
    sample_every: Annotated[
        int | None,
        typer.Option(
            "--sample-every", metavar="N", parser=positive, help="Steps between sheets of samples."
        ),
    ] = None
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every", metavar="N", parser=positive, help="Steps between checkpoints."
        ),
    ] = None
    stop_after: Annotated[
        float | None,
        typer.Option(
            "--stop-after",
            metavar="MINUTES",
            parser=number,
            help="Save and stop after this time; run again to continue.",
        ),
    ] = None
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="cuda, mps or cpu.")
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="NAME", help="Precision: float32, bf16 or fp16."),
    ] = None


@grouped
def train(options: TrainOptions, config: Config = None, quiet: Quiet = False) -> None:
    """Train a model, LoRA, embedding or ControlNet on pictures with captions. Prints its path."""
    options = with_adapter(options)
    data, stage = options.data, options.stage
    if config is None and (data is None or options.out is None):
        raise BadRequest("what to train on, and where to? txt2img train DATA --out FOLDER")
    if stage not in (None, "distil", "all", *STAGES, *ADAPTERS):  # its older spelling
        raise BadRequest(f"no stage {shown(str(stage))}; choose from {', '.join(STAGES)}, all")
    if data is not None and not data.exists():
        raise BadRequest(f"no data at {shown(str(data))}; name a folder or a .zip of pictures")
    is_main = os.environ.get("RANK", "0") == "0"  # of several processes one reports for all
    values = asdict(options)
    adapter = values.pop("lora") or values["embedding"]
    del values["embedding"]
    folder = fit(config, values | {"adapter": adapter}, quiet or not is_main)
    if is_main:
        print_path(adapter or folder)


def with_adapter(options: TrainOptions) -> TrainOptions:
    """The options, of an adapter with its stage and a folder. BadRequest."""
    files = {"lora": options.lora, "embedding": options.embedding}
    given = {kind: path for kind, path in files.items() if path is not None}
    count = len(given) + (options.control is not None)
    if not count:
        return options
    if count > 1 or options.stage is not None:
        raise BadRequest("--lora, --embedding, --control and --stage; give one of them")
    if options.control is not None:
        parse_preprocess(options.control)
        return replace(options, stage="control", size=options.size or 0)
    [(kind, path)] = given.items()
    if path.suffix.lower() != ".safetensors":
        raise BadRequest(f"--{kind} {shown(path)}; name a .safetensors file")
    if not path.parent.is_dir():
        raise BadRequest(f"--{kind}: no folder {shown(path.parent)}")
    out = options.out or path.with_name(f"{path.stem}-training")
    return replace(options, stage=kind, out=out, size=options.size or 0)


def fit(config: Path | None, options: dict[str, object], quiet: bool) -> Path:
    """Run the training, with progress on the terminal. Returns the model's folder."""
    with progress(not quiet, "loading") as bar:
        from txt2img.train.config import read_config, with_options
        from txt2img.train.loop import fit as training
        from txt2img.train.loop import is_whole

        settings = with_options(read_config(config), options)
        stage, logged = "", 0.0
        for report in training(settings):
            at = f"{report.step}/{report.steps}"
            speed = f"loss {report.loss:.4f}  {report.images_per_second:.1f} img/s"
            bar.advance(report.stage, report.step, report.steps, f"{at} {speed}")
            is_new, stage = report.stage != stage, report.stage
            if is_new and report.plain:
                with bar.paused():
                    log(f"Warning: {stage} is not compiled, since compiling failed: {report.plain}")
            is_due = not bar.visible and (is_new or time.monotonic() - logged > LOG_SECONDS)
            if not quiet and (report.sheet or report.step == report.steps or is_due):
                with bar.paused():
                    log(f"{stage} {at} {speed}" + (f"  {report.sheet}" if report.sheet else ""))
                logged = time.monotonic()
        if settings.stop_after is not None and not quiet and not is_whole(settings):
            log(f"stopped after {settings.stop_after:g} minutes; run it again to continue")
    return settings.out


COMMAND: Command = train, EPILOG
