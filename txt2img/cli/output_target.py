"""Where the pictures of a command go: files named by a pattern, or standard output."""

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from txt2img.cli.options.batch import BatchOptions
from txt2img.cli.options.output import OutputOptions
from txt2img.cli.terminal.console import print_bytes
from txt2img.cli.terminal.streams import CLOSED
from txt2img.errors import BadRequest
from txt2img.images import output
from txt2img.images.formats import PNG, Format
from txt2img.images.output import Output
from txt2img.request.sweep import axis


def named_by_values(pattern: str, sweep: Sequence[str], form: Format) -> str:
    """The usual pattern with a token for each option that is swept and has one; others as it is."""
    if pattern != output.default_pattern(form):
        return pattern
    swept = [field for text in sweep if (field := axis(text).field) in output.TOKENS]
    more = [f"-{{{field}}}" for field in swept if f"{{{field}}}" not in pattern]
    return pattern.replace(form.suffix, "".join(more) + form.suffix)


def destination(
    filed: OutputOptions, several: bool, batching: BatchOptions, context: typer.Context
) -> output.Output:
    """Where the pictures go, and as what. BadRequest."""

    def said(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    out = context.params["out"]
    form = filed.picture_format(out, said)
    if out != "-":
        target = output.parse(out, several, context.params["overwrite"], form)
        target.resume = batching.resume
        target.pattern = named_by_values(target.pattern, batching.sweep or (), form)
        return target
    if several:
        raise BadRequest("-o - writes one picture to standard output; name a folder for several")
    if 1 in CLOSED:
        raise BadRequest("-o - writes to standard output, which is closed; name a file instead")
    if sys.stdout.isatty():
        raise BadRequest("-o - would fill the terminal with a picture's bytes; pipe it on")
    return StdoutOutput(form)


class StdoutOutput(Output):
    """Where one picture goes that is not to become a file."""

    def __init__(self, form: Format = PNG) -> None:
        super().__init__(Path(), "-", exact=True, format=form)

    def _prepare(self) -> None:
        """There is no folder to prepare."""

    def check_free(self) -> None:
        """There is no name that could be taken."""

    def write_as(self, data: bytes, name: str, number: int = 1) -> Path:
        """Write the picture; gives no path that is one."""
        print_bytes(data)
        return Path("-")
