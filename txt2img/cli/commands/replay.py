"""txt2img replay: draw pictures again from what they say of themselves, ours or others'."""

from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.grouped import grouped
from txt2img.cli.names import Command
from txt2img.cli.options import types
from txt2img.cli.options.adapters import AdapterOptions
from txt2img.cli.options.groups import RunOptions
from txt2img.cli.options.picture import PictureOptions
from txt2img.cli.requests import again
from txt2img.cli.run import carry_out
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
    asked: PictureOptions = PictureOptions(),  # noqa: B008 - frozen; only its fields' defaults are used
    quiet: types.Quiet = False,
    json: types.Json = False,
    named: AdapterOptions = AdapterOptions(),  # noqa: B008 - as above
    manner: RunOptions = RunOptions(),  # noqa: B008 - as above
) -> None:
    """Draw pictures again, as they say they were drawn. Prints the path of each it writes."""
    with errors_on_stdout(json):
        manner.check(asked, json)
        given = {**asked.request_fields(), **named.request_fields()}
        wish = again(files, given, named.library(), manner.batching)
        raise typer.Exit(carry_out(wish, manner, context))


COMMAND: Command = replay, EPILOG
