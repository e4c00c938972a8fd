"""txt2img info: print what pictures and weight files contain."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.file_info import picture, picture_kind, print_record, weights
from txt2img.cli.provenance import request_of
from txt2img.cli.registry import Command
from txt2img.cli.shell_line import command_line
from txt2img.cli.terminal.console import log, print_json, print_line
from txt2img.errors import BadRequest, Txt2imgError
from txt2img.images import image_file
from txt2img.images.metadata.a1111 import describe
from txt2img.images.metadata.parsed import written_json
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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON record per file.")]
A1111 = Annotated[bool, typer.Option("--a1111", help="Print the record in the format of A1111.")]
CommandLine = Annotated[
    bool, typer.Option("--command", help="Print the command line that draws the picture.")
]


def info(
    files: Files, json: Json = False, a1111: A1111 = False, command: CommandLine = False
) -> None:
    """Print what pictures and weight files contain."""
    if json + a1111 + command > 1:
        raise BadRequest("--json, --a1111 and --command exclude each other; give one of them")
    code = printed = 0
    for name in files:
        try:
            if a1111 or command:
                print_line(as_command(Path(name)) if command else as_a1111(Path(name)))
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
        if printed:
            print_line("")
        printed += 1
        print_record(name, record)
    if code:
        raise typer.Exit(code)


def as_a1111(path: Path) -> str:
    """A picture's record in A1111's format. BadFile, BadRequest."""
    info = image_file.read(path)
    parameters = info.texts.get("parameters")
    if parameters is not None and not written_json({"parameters": parameters}):
        return parameters
    request, origin = request_of(path, info), info.origin
    return str(describe(request, origin.model, origin.hash, __version__))


def as_command(path: Path) -> str:
    """The command line that draws a picture. BadFile, BadRequest."""
    request = request_of(path, image_file.read(path))
    return command_line(request if request.model else replace(request, model="MODEL"))


COMMAND: Command = info, EPILOG
