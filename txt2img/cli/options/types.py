"""The options of the commands, each said once."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from txt2img.cli.options import completion
from txt2img.cli.terminal.console import print_line
from txt2img.errors import BadRequest
from txt2img.request import Sampler, Schedule
from txt2img.request.fields import FIELDS
from txt2img.system.text import shown
from txt2img.system.version import __version__


def whole(option: str) -> Callable[[str], int]:
    """A parser of whole numbers for that option; BadRequest says what was got."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
            sizes = re.fullmatch(r"([0-9]{1,5})[x×*]([0-9]{1,5})", text)
            hint = f"; a size is said as -W {sizes[1]} -H {sizes[2]}" if sizes else ""
            raise BadRequest(f"{option} must be a whole number, got {shown(text)}{hint}")
        return int(text)

    return parse


def number(option: str) -> Callable[[str], float]:
    """A parser of numbers for that option; BadRequest says what was got."""

    def parse(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise BadRequest(f"{option} must be a number, got {shown(text)}") from None

    return parse


def positive(option: str) -> Callable[[str], int]:
    """A parser of counts from 1 up for that option; BadRequest says what was got."""

    def parse(text: str) -> int:
        value = whole(option)(text)
        if value < 1:
            raise BadRequest(f"{option} must be at least 1, got {value}")
        return value

    return parse


def field_option(
    name: str, metavar: str, help: str, autocompletion: Callable[[str], list[str]] | None = None
) -> Any:
    """The option of a request's field, with the flags and the parser that its row says."""
    field = FIELDS[name]
    parse = {int: whole, float: number}.get(field.kind)
    return typer.Option(
        *field.flags,
        metavar=metavar,
        help=help,
        parser=parse(field.flags[0]) if parse else None,
        autocompletion=autocompletion,
    )


def given_fields(options: object) -> dict[str, object]:
    """The fields of a request that options of these names give."""
    values = {name: getattr(options, name, None) for name, row in FIELDS.items() if row.scalar}
    return {name: value for name, value in values.items() if value is not None}


def _version(asked: bool) -> None:
    if asked:
        print_line(f"txt2img {__version__}")
        raise typer.Exit


def _names(kind: type[Sampler] | type[Schedule]) -> str:
    return ", ".join(member.value for member in kind)


Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="What to draw, in quotes.", show_default=False),
]
Negative = Annotated[
    str | None,
    field_option(
        "negative",
        metavar="TEXT",
        help="Negative prompt: what the picture should not show.",
    ),
]
Model = Annotated[
    str | None,
    field_option(
        "model",
        metavar="NAME|PATH",
        autocompletion=completion.known_models,
        help="A name that txt2img models list shows, a diffusers folder, or a .safetensors file.",
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        autocompletion=completion.profiles,
        help="Options of [profiles.NAME] in config.toml.",
    ),
]
Width = Annotated[
    int | None,
    field_option(
        "width",
        metavar="PIXELS",
        help="Width in pixels, a multiple of 8; if not given, what the model is made for.",
    ),
]
Height = Annotated[
    int | None,
    field_option(
        "height",
        metavar="PIXELS",
        help="Height in pixels, likewise.",
    ),
]
Steps = Annotated[
    int | None,
    field_option(
        "steps",
        metavar="N",
        help="How many denoising steps: more are finer and slower.",
    ),
]
Cfg = Annotated[
    float | None,
    field_option(
        "cfg",
        metavar="X",
        help="Guidance scale: how closely to follow the prompt; 1 is free, 7.5 is usual.",
    ),
]
CfgRescale = Annotated[
    float | None,
    field_option(
        "cfg_rescale",
        metavar="X",
        help="0 … 1: take back the glare that a high --cfg brings.",
    ),
]
Eta = Annotated[
    float | None,
    field_option(
        "eta",
        metavar="X",
        help="0 … 1: fresh noise in each step, for samplers that have it.",
    ),
]
SamplerName = Annotated[
    str | None,
    field_option(
        "sampler",
        metavar="NAME",
        autocompletion=completion.samplers,
        help=f"One of {_names(Sampler)}; if not given, the model's own. "
        'A1111\'s names, as "DPM++ 2M Karras", do too.',
    ),
]
ScheduleName = Annotated[
    str | None,
    field_option(
        "schedule",
        metavar="NAME",
        autocompletion=completion.schedules,
        help=f"One of {_names(Schedule)}.",
    ),
]
Seed = Annotated[
    int | None,
    field_option(
        "seed",
        metavar="N",
        help="The same seed draws the same picture; if not given, or -1, drawn at random and told.",
    ),
]
Count = Annotated[
    int | None,
    field_option("count", metavar="N", help="How many pictures: seed, seed+1, …"),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        parser=positive("--batch-size"),
        help="Pictures drawn at once; if not given 1, or on a CUDA card as many as fit.",
    ),
]
OutputName = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        help="A folder/, a file.png, or a pattern such as art/{prompt}-{seed}.png; - is standard "
        "output. Of several pictures a name without such an ending is a folder.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE|-",
        help="Draw each line of a file (- is standard input); a line may end in options: "
        "a red apple --seed 7 --cfg 5. Or JSON lines.",
    ),
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="PICTURE", help="Repeat a picture; options given here replace its own."
    ),
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        autocompletion=completion.devices,
        help="cuda, mps or cpu; the best there is if not given.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        autocompletion=completion.dtypes,
        help="Precision: float32, bf16 or fp16; or of single parts: unet=bf16,vae=fp32,text=fp32.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print paths and errors only.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON record a picture instead of its path.")
]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit."),
]
Loras = Annotated[
    list[str] | None,
    field_option(
        "loras",
        metavar="FILE[:W[:TE]]",
        autocompletion=completion.known_models,
        help="Add a LoRA, by file or name, at strength W (1), TE (W) for the text encoder. "
        "Repeatable; <lora:name:W> in a prompt does the same.",
    ),
]
LoraFolders = Annotated[
    list[str] | None,
    typer.Option(
        "--lora-dir",
        metavar="DIR",
        help="Where <lora:name> finds files, besides TXT2IMG_LORAS. Repeatable.",
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE[:WORD]",
        autocompletion=completion.known_models,
        help="Learn a word (textual inversion) from a file. Repeatable.",
    ),
]
EmbeddingFolders = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding-dir",
        metavar="DIR",
        help="Learn the words that files there are named after. Repeatable.",
    ),
]
VAE = Annotated[
    str | None,
    field_option(
        "vae",
        metavar="NAME|PATH",
        autocompletion=completion.known_models,
        help="Another VAE than the model's own; none: its own again.",
    ),
]
RefinerName = Annotated[
    str | None,
    field_option(
        "refiner",
        metavar="MODEL[:SWITCH]",
        autocompletion=completion.known_models,
        help="Let another model, such as SDXL's refiner, draw the last steps, after a part SWITCH "
        "(0.8) of the way from noise to picture; none: no other.",
    ),
]
UNetFile = Annotated[
    str | None,
    typer.Option(
        "--unet",
        metavar="NAME|PATH",
        autocompletion=completion.known_models,
        help="Another U-Net than the model's own, in any layout; a file may hold it alone.",
    ),
]
TextEncoders = Annotated[
    list[str] | None,
    typer.Option(
        "--text-encoder",
        metavar="NAME|PATH",
        autocompletion=completion.known_models,
        help="Another text encoder, likewise; SDXL's two are told apart. Repeatable.",
    ),
]
