"""Commands by name. A command's module is imported only when it is asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

NAMES = (
    "generate",
    "info",
    "models",
    "samplers",
    "replay",
    "verify",
    "decode",
    "upscale",
    "preprocess",
    "enhance",
    "train",
    "worker",
    "serve",
    "again",
    "env",
)
MODEL_VERBS = ("list", "show", "words", "path", "hash", "convert", "pull", "rm", "default")
OTHER_VERBS = {  # words that are no verbs of `txt2img models`, but mean one
    **dict.fromkeys(("add", "download", "fetch", "get", "install"), "pull"),
    **dict.fromkeys(("delete", "remove", "uninstall"), "rm"),
    **dict.fromkeys(("ls", "all"), "list"),
    **dict.fromkeys(("info", "describe", "inspect"), "show"),
    **dict.fromkeys(("quantize", "quantise", "export"), "convert"),
    **dict.fromkeys(("search", "find", "vocabulary"), "words"),
}

Command = tuple[Callable[..., None], str]  # the function, and the epilog of its --help


def command(name: str) -> Command:
    """Import a command by its name, which its module has too. `models` has verbs instead."""
    module = import_module(f"txt2img.cli.commands.{name}")
    return cast(Command, module.COMMAND)


def model_commands() -> dict[str, Command]:
    """Import the commands of `txt2img models`, by verb."""
    module = import_module("txt2img.cli.commands.models")
    return cast(dict[str, Command], module.COMMANDS)
