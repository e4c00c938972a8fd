"""txt2img samplers: the names of samplers and schedules, here and in other programs."""

from typing import Annotated

import typer

from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import print_json, print_line
from txt2img.request.sampler_names import Name, Sampler, Schedule

EPILOG = """
\b
Examples:
  txt2img samplers
  txt2img "red apple" --sampler euler_a --schedule karras
"""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON record per name.")]


def samplers(json: Json = False) -> None:
    """List the values of --sampler and --schedule, each with its names in other programs.

    All these names are accepted. Without the options, the model says which it takes.
    """
    for kind in (Sampler, Schedule):
        if not json:
            print_line(f"--{kind.__name__.lower()}")
        for member in kind:
            others = names_elsewhere(member)
            if json:
                record = {"kind": kind.__name__.lower(), "name": member.value, "aliases": others}
                print_json(record)
            else:
                print_line(f"  {member.value:18} {', '.join(others)}".rstrip())


def names_elsewhere(member: Name) -> list[str]:
    """What other programs call it, A1111 first."""
    others = {name.lower(): name for name in (*member.aliases, member.label)}
    own = {name for name in others.values() if type(member).parse(name) is member}
    return [name for name in (member.label, *member.aliases) if name in own - {member.value}]


COMMAND: Command = (samplers, EPILOG)
