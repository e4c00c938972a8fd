"""Options of request fields, and parsers of numbers."""

import re
from collections.abc import Callable
from typing import Any

import typer

from txt2img.cli.options.completion import completion
from txt2img.request.fields import FIELDS
from txt2img.request.sampler_names import Name
from txt2img.system.text import shown


def integer(text: str) -> int:
    """Parse a whole number."""
    if not re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        size = re.fullmatch(r"([0-9]{1,5})[x×*]([0-9]{1,5})", text)
        hint = f"; for a size use -W {size[1]} -H {size[2]}" if size else ""
        hint = hint or _hint(text)
        raise typer.BadParameter(f"must be a whole number, got {shown(text)}{hint}")
    return int(text)


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    value = integer(text)
    if value < 1:
        raise typer.BadParameter(f"must be at least 1, got {value}")
    return value


def number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        point = f"; write {text.replace(',', '.')}" if re.fullmatch(r"[0-9]+,[0-9]+", text) else ""
        hint = point or _hint(text)
        raise typer.BadParameter(f"must be a number, got {shown(text)}{hint}") from None


def _hint(text: str) -> str:
    """What to do about a text that is no number; empty if nothing is known."""
    if re.fullmatch(r"[0-9.]+(,[0-9.]+)+", text):
        return f"; several values take --sweep OPTION={text}"
    if text.lower() in ("random", "rand", "any"):
        return "; left out, it is random"
    return ""


def field_option(
    name: str,
    metavar: str,
    help: str,
    autocompletion: Callable[[str], list[str]] | None = None,
    seldom: bool = False,
) -> Any:
    """The option of a request's field, with the flags and the type of its row.

    One that is seldom used is not in --help, but in txt2img help TOPIC.
    """
    field = FIELDS[name]
    kind, names = field.kind, None
    if issubclass(kind, Name):
        names = completion(lambda: [member.value for member in kind])
    return typer.Option(
        *field.flags,
        metavar=metavar or None,  # a switch has none
        help=help,
        hidden=seldom,
        parser={int: integer, float: number}.get(field.kind),
        autocompletion=autocompletion or names,
    )


def given_fields(options: object) -> dict[str, object]:
    """The fields of a request whose options are given, by field."""
    values = {n: getattr(options, row.option, None) for n, row in FIELDS.items() if row.scalar}
    return {name: value for name, value in values.items() if value is not None}
