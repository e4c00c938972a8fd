"""txt2img replay: draw pictures again from their records, ours or other programs'."""

from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options.command import grouped
from txt2img.cli.registry import Command
from txt2img.cli.requests import from_pictures
from txt2img.cli.run import run
from txt2img.cli.run_options import RunOptions
from txt2img.cli.terminal.results import errors_on_stdout

EPILOG = """
\b
Examples:
  txt2img replay picture.png -o again.png
  txt2img replay old/*.png --model models/sd15.safetensors -o new/
  txt2img replay old/*.png --steps 50 --dry-run

Options given here replace the pictures' own. Settings of other programs that
txt2img does not support are reported, one line each.
"""
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Pictures by txt2img or other programs.")
]


@grouped
def replay(context: typer.Context, files: Files, options: RunOptions) -> None:
    """Draw pictures again from their records. Prints the path of each picture it writes."""
    with errors_on_stdout(options.output.json):
        options.check()
        raise typer.Exit(run(from_pictures(files, options), options, context))


COMMAND: Command = replay, EPILOG
