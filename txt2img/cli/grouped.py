"""Options that belong together as one dataclass: a command takes it as a single parameter."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is a dataclass of options spread out into its fields.

    A field may be such a dataclass itself.
    """
    own = signature(command, eval_str=True)
    spread: list[Parameter] = []
    for parameter in own.parameters.values():
        group = parameter.annotation
        spread += _options(group) if _is_group(group) else [parameter]

    def run(**given: object) -> None:
        command(
            **{
                name: _made(parameter.annotation, given)
                if _is_group(parameter.annotation)
                else given[name]
                for name, parameter in own.parameters.items()
            }
        )

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in spread}
    vars(run)["__signature__"] = own.replace(parameters=spread)
    return run


def _is_group(annotation: object) -> bool:
    return isinstance(annotation, type) and is_dataclass(annotation)


def _options(group: type) -> Iterator[Parameter]:
    """Each option of a group as a command's parameter."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        hint = hints[field.name]
        if _is_group(hint):
            yield from _options(hint)
        else:
            kind = Parameter.POSITIONAL_OR_KEYWORD
            yield Parameter(field.name, kind, default=field.default, annotation=hint)


def _made(group: type, given: Mapping[str, object]) -> object:
    """The group of what was given."""
    hints = get_type_hints(group, include_extras=True)
    return group(
        **{
            field.name: _made(hints[field.name], given)
            if _is_group(hints[field.name])
            else given[field.name]
            for field in fields(group)
        }
    )
