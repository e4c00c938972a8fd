"""txt2img replay: draw pictures again from what they say of themselves, ours or others'."""

from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.names import Command
from txt2img.cli.options.command import grouped
from txt2img.cli.options.groups import RunOptions
from txt2img.cli.requests import from_pictures
from txt2img.cli.run import run
from txt2img.cli.terminal.results import errors_on_stdout

EPILOG = """
\b
Examples:
  txt2img replay picture.png -o again.png
  txt2img replay old/*.png --model models/sd15.safetensors -o new/
  txt2img replay old/*.png --steps 50 --dry-run

Options given here replace the pictures' own. What another program says of a
picture and txt2img has no word for is told, one line each.
"""
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE", help="Pictures of txt2img's or others'.")
]


@grouped
def replay(
    context: typer.Context,
    files: Files,
    options: RunOptions,
) -> None:
    """Draw pictures again, as they say they were drawn. Prints the path of each it writes."""
    with errors_on_stdout(options.output.json):
        options.check()
        raise typer.Exit(run(from_pictures(files, options), options, context))


COMMAND: Command = replay, EPILOG
