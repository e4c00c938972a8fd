"""txt2img info: what is in a picture or a weight file."""

import json as jsonlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.names import Command
from txt2img.cli.provenance import request_of
from txt2img.cli.shell_line import command_line
from txt2img.cli.terminal.console import log, print_json, print_line
from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.images import formats, image_file
from txt2img.images.animation import STEP_KEY
from txt2img.images.metadata import a1111 as infotext
from txt2img.system.files import open_regular, parse_json
from txt2img.system.text import format_size, shown
from txt2img.system.version import __version__

EPILOG = """
\b
Examples:
  txt2img info red-apple-3d-emoji-42.png
  txt2img info default models/sd15.safetensors models/my-folder
  txt2img info --json *.png
  txt2img info --command picture.png
"""
Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE", help="Pictures, .safetensors files, model folders."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON record a file.")]
A1111 = Annotated[
    bool, typer.Option("--a1111", help="Print the text that other programs read in a picture.")
]
CommandLine = Annotated[
    bool, typer.Option("--command", help="Print the command line that draws a picture.")
]


def info(
    files: Files, json: Json = False, a1111: A1111 = False, command: CommandLine = False
) -> None:
    """Say what is in pictures and weight files."""
    if json + a1111 + command > 1:
        raise BadRequest("--json, --a1111 and --command are three forms; give one of them")
    code = said = 0
    for name in files:
        try:
            if a1111 or command:
                print_line(as_command(Path(name)) if command else as_infotext(Path(name)))
                continue
            kind = picture_kind(name)
            record = picture(Path(name), kind) if kind else weights(name)
        except Txt2imgError as error:
            log(f"Error: {error}")
            code = code or error.exit_code
            continue
        if json:
            print_json({"file": name, **record})
            continue
        if said:
            print_line("")
        said += 1
        say_known(name, record)
    if code:
        raise typer.Exit(code)


def as_infotext(path: Path) -> str:
    """A picture's record as A1111 writes it. BadFile, BadRequest."""
    found = image_file.read(path)
    if not found.texts.get("parameters", "{").startswith("{"):  # Fooocus' is JSON
        return found.texts["parameters"]
    request, origin = request_of(path, found), found.origin
    return str(infotext.describe(request, origin.model, origin.hash, __version__))


def as_command(path: Path) -> str:
    """The command line that draws a picture. BadFile, BadRequest."""
    return command_line(request_of(path, image_file.read(path)))


def picture_kind(name: str) -> str:
    """Which kind of picture begins as the file does; empty if none. BadFile."""
    if name == "default" or Path(name).is_dir():
        return ""
    with open_regular(Path(name)) as file:
        format = formats.by_content(file.read(formats.HEAD))
    if format is None and formats.by_suffix(name):
        raise BadFile(f"{shown(name)} is no picture, whatever its name says")
    return format.name if format else ""


def picture(path: Path, kind: str) -> dict[str, object]:
    """What a picture says of itself, in both forms."""
    found = image_file.read(path)
    texts = dict(found.texts)
    parameters = texts.pop("parameters", "")
    try:
        ours: object = parse_json(texts.pop("txt2img", '""'))
    except ValueError:
        ours = ""  # a note says so
    try:
        step: object = parse_json(texts.pop(STEP_KEY, '""'))
    except ValueError:
        step = ""
    return {
        "kind": f"a {kind} picture, {found.width}x{found.height}",
        "parameters": parameters,
        "txt2img": ours,
        STEP_KEY: step,
        "request": found.request.to_json() if found.request and not ours else "",
        "other texts": {key: f"{len(text):,} characters" for key, text in texts.items()},
        "notes": list(found.notes),
    }


def weights(name: str) -> dict[str, object]:
    """What a weight file or folder holds."""
    from txt2img.weights.checkpoint import summary

    found = summary(name)
    family, drawn = found.family, found.family.defaults
    needs = f"{family.needs} beside the prompt, not supported yet" if family.needs else ""
    needs = needs or ("" if found.vae else "a VAE, given with --vae")
    return {
        "kind": f"weights of {family.name}",
        "name": found.name,
        "hash": found.hash,
        "layout": found.layout,
        "prediction": family.prediction,
        "needs": needs,
        "weights": f"{found.parameters:,} in {found.tensors:,} tensors",
        "dtype": ", ".join(found.dtypes),
        "size": format_size(found.size),
        "draws": f"{drawn.width}x{drawn.height}, {drawn.steps} steps, cfg {drawn.cfg:g}, "
        f"{drawn.sampler}, {drawn.schedule}",
    }


def say_known(name: str, record: Mapping[str, object]) -> None:
    """All that is known of a file, beginning with its kind."""
    print_line(f"{name}: {record['kind']}")
    for key, value in record.items():
        if key != "kind" and value:
            say_field(key, value)


def say_field(key: str, value: object) -> None:
    """One thing that is known of a file: on its line, or on the lines below."""
    if isinstance(value, Mapping):
        value = jsonlib.dumps(value, indent=2, ensure_ascii=False)
    elif isinstance(value, list):
        value = "\n".join(str(item) for item in value)
    if "\n" not in str(value) and key not in ("parameters", "txt2img"):
        print_line(f"  {key:12}{value}")
        return
    print_line(f"  {key}:")
    for line in str(value).split("\n"):
        print_line(f"    {line}")


COMMAND: Command = info, EPILOG
