"""A command that converts plain values by itself, and so starts sooner.

typer has pydantic convert them, which takes as long to import as all else that a dry run needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typer.core import TyperCommand

from txt2img.cli.sections import sorted_out

if TYPE_CHECKING:
    import typer
    from typer._click.core import Parameter
    from typer._click.formatting import HelpFormatter

Read = Callable[[str], object]
PLAIN: dict[object, tuple[Read, bool]] = {  # annotation → what converts one value, is it a list
    bool: (bool, False),
    str: (str, False),
    Path: (Path, False),
    list[str]: (str, True),
    list[Path]: (Path, True),
}


@dataclass(frozen=True)
class Reader:
    """Stands in for typer's RuntimeParam, which converts a parameter's values by pydantic."""

    read: Read
    several: bool

    def coerce(self, value: str | Sequence[str] | None, **_: object) -> object:
        """The texts of the command line as what the command takes. BadRequest by a parser."""
        if isinstance(value, list | tuple):
            return [self.read(one) for one in value]
        if self.several and value is None:
            return ()
        return None if value is None else self.read(value)  # type: ignore[arg-type]


class Direct(TyperCommand):
    """A command whose texts, paths, switches and numbers with a parser need no pydantic.

    This uses names that typer does not promise to keep; where they are gone, typer converts.
    """

    def get_params(self, ctx: "typer.Context") -> "list[Parameter]":  # type: ignore[override]
        """The command's parameters, with --help's."""
        params = super().get_params(ctx)
        for param in params:
            if reader := _reader(param):
                vars(param)["get_runtime_param"] = lambda reader=reader: reader
        return params

    def format_options(self, ctx: "typer.Context", formatter: "HelpFormatter") -> None:  # type: ignore[override]
        """Write the arguments, and the options in their sections."""
        params = self.get_params(ctx)
        arguments = [p for p in params if p.param_type_name == "argument"]
        rows = [row for p in arguments if (row := p.get_help_record(ctx))]
        options = sorted_out([p for p in params if p not in arguments], ctx)
        for title, lines in (({"Arguments": rows} if rows else {}) | options).items():
            with formatter.section(title):
                formatter.write_dl(lines)


def _reader(param: object) -> Reader | None:
    """The reader of a parameter; None for what only typer can read."""
    told = vars(param).get("type_descriptor")
    annotation = getattr(told, "annotation", None)
    parser = getattr(getattr(told, "parameter_info", None), "parser", None)
    if parser is not None:
        return Reader(parser, several=False) if annotation in (int, float) else None
    return Reader(*PLAIN[annotation]) if annotation in PLAIN else None
