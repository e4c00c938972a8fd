"""What a command converts by itself, and what it leaves to typer."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from txt2img.cli.options import command


def param(annotation: object, parser: object = None) -> SimpleNamespace:
    """A parameter as typer describes it."""
    info = SimpleNamespace(parser=parser)
    return SimpleNamespace(
        type_descriptor=SimpleNamespace(annotation=annotation, parameter_info=info)
    )


def test_plain_values_are_converted() -> None:
    for given, value, wanted in (
        (param(str), "a", "a"),
        (param(Path), "a/b", Path("a/b")),
        (param(Path), None, None),
        (param(list[Path]), ("a", "b"), [Path("a"), Path("b")]),
        (param(list[str]), None, ()),
        (param(int, lambda text: 2 * int(text)), "4", 8),
    ):
        reader = command._reader(given)
        assert reader is not None and reader.coerce(value) == wanted


@pytest.mark.parametrize(
    "given",
    [
        param(int),
        param(str, str.upper),
        SimpleNamespace(),  # --help's; and all of a typer that describes them in another way
        SimpleNamespace(type_descriptor=SimpleNamespace(kind=int)),
    ],
    ids=["no parser", "a parser of its own", "not described", "described otherwise"],
)
def test_all_else_is_typers(given: SimpleNamespace) -> None:
    assert command._reader(given) is None
