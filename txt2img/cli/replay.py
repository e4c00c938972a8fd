"""txt2img replay: draw pictures again from what they say of themselves, ours or others'."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli import options
from txt2img.cli.asked import Asked
from txt2img.cli.batching import Batching
from txt2img.cli.extras import Named
from txt2img.cli.filing import Filed
from txt2img.cli.generate import carry_out, chosen
from txt2img.cli.grouped import grouped
from txt2img.cli.precision import Precision
from txt2img.cli.results import say_error
from txt2img.cli.viewing import Viewing
from txt2img.cli.warming import Warming
from txt2img.cli.wish import again
from txt2img.errors import BadOutput, Txt2imgError

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
    asked: Asked = Asked(),  # noqa: B008 - frozen; only its fields' defaults are used
    quiet: options.Quiet = False,
    json: options.Json = False,
    named: Named = Named(),  # noqa: B008 - as above
    batching: Batching = Batching(),  # noqa: B008 - as above
    precision: Precision = Precision(),  # noqa: B008 - as above
    viewing: Viewing = Viewing(),  # noqa: B008 - as above
    filed: Filed = Filed(),  # noqa: B008 - as above
    warming: Warming = Warming(),  # noqa: B008 - as above
) -> None:
    """Draw pictures again, as they say they were drawn. Prints the path of each it writes."""
    try:
        batching.check(asked.out, asked.overwrite, json)
        precision.check()
        viewing.check(asked.out, asked.overwrite)
        warming.check()
        given = {**chosen(context), **named.given()}
        wish = again(files, given, named.library(), batching)
        code = carry_out(wish, batching, filed, viewing, context, json)
    except Txt2imgError as error:
        with suppress(BadOutput):
            say_error(error, json, aloud=False)
        raise
    raise typer.Exit(code)
