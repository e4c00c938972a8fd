"""txt2img again: draw what was drawn last, with new seeds."""

import os
from typing import Annotated

import typer

from txt2img.cli import last_line, registry
from txt2img.cli.options.command import ConfiguredCommand
from txt2img.cli.options.types import positive
from txt2img.cli.terminal.console import log
from txt2img.system.text import shown

EPILOG = """
\b
Examples:
  txt2img again
  txt2img again -n 4
  txt2img again --steps 50
"""
Count = Annotated[
    int | None,
    typer.Option(
        "--count", "-n", metavar="N", parser=positive, help="Number of pictures (as last time)."
    ),
]


def again(context: typer.Context, count: Count = None) -> None:
    """Draw what was drawn last once more, with new seeds. Other options replace those of then."""
    arguments, folder = last_line.load()
    if folder != os.getcwd():
        log(f"Note: that line was run in {shown(folder)}; its relative paths are of this folder")
    line = last_line.with_new_seeds(arguments, count)
    place = line.index("--") if "--" in line else len(line)
    line[place:place] = context.args
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    function, epilog = registry.command("generate")
    settings = {"allow_extra_args": True}
    app.command(epilog=epilog, context_settings=settings, cls=ConfiguredCommand)(function)
    command = typer.main.get_command(app)
    code = command.main(line, prog_name="txt2img", standalone_mode=False)
    raise typer.Exit(int(code or 0))


COMMAND: registry.Command = again, EPILOG
