"""The commands by their names: a command's file is read when it is asked for, and no other."""

from collections.abc import Callable

NAMES = ("generate", "info", "models", "replay", "verify", "decode", "train", "worker")

Command = tuple[Callable[..., None], str]  # what it does, and the end of its help


def command(name: str) -> Command:
    """The command of a name, but for `models`, which is a group of its own verbs."""
    match name:
        case "info":
            from txt2img.cli.commands.info import COMMAND
        case "replay":
            from txt2img.cli.commands.replay import COMMAND
        case "verify":
            from txt2img.cli.commands.verify import COMMAND
        case "decode":
            from txt2img.cli.commands.decode import COMMAND
        case "train":
            from txt2img.cli.commands.train import COMMAND
        case "worker":
            from txt2img.cli.commands.worker import COMMAND
        case _:
            from txt2img.cli.commands.generate import COMMAND
    return COMMAND
