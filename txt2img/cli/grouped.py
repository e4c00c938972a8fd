"""Options that belong together as one dataclass: a command takes it as a single parameter."""

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from typing import get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its last parameter, a dataclass of options, spread out into its fields."""
    own = signature(command, eval_str=True)
    *first, group = own.parameters.values()
    hints = get_type_hints(group.annotation, include_extras=True)
    more = [
        Parameter(
            f.name, Parameter.POSITIONAL_OR_KEYWORD, default=f.default, annotation=hints[f.name]
        )
        for f in fields(group.annotation)
    ]

    def run(**given: object) -> None:
        values = {name: given.pop(name) for name in hints}
        command(**given, **{group.name: group.annotation(**values)})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in (*first, *more)}
    vars(run)["__signature__"] = own.replace(parameters=[*first, *more])
    return run
