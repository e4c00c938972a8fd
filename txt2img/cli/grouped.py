"""Options that belong together as one dataclass: a command takes it as a single parameter."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass of options spread out into its fields."""
    own = signature(command, eval_str=True)
    groups: dict[str, type] = {
        name: parameter.annotation
        for name, parameter in own.parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    hints = {n: get_type_hints(group, include_extras=True) for n, group in groups.items()}
    kind = Parameter.POSITIONAL_OR_KEYWORD
    spread: list[Parameter] = []
    for n, parameter in own.parameters.items():
        if n not in groups:
            spread.append(parameter)
            continue
        spread += [
            Parameter(f.name, kind, default=f.default, annotation=hints[n][f.name])
            for f in fields(groups[n])
        ]

    def run(**given: object) -> None:
        made = {
            n: group(**{name: given.pop(name) for name in hints[n]}) for n, group in groups.items()
        }
        command(**given, **made)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in spread}
    vars(run)["__signature__"] = own.replace(parameters=spread)
    return run
