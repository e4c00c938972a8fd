"""The commands by their names: a command's file is read when it is asked for, and no other."""

from collections.abc import Callable

NAMES = ("generate", "info", "models", "replay", "verify", "decode", "train", "worker")

Command = tuple[Callable[..., None], str]  # what it does, and the end of its help


def command(name: str) -> Command:
    """The command of a name, but for `models`, which is a group of its own verbs."""
    match name:
        case "info":
            from txt2img.cli.info import COMMAND
        case "replay":
            from txt2img.cli.replay import COMMAND
        case "verify":
            from txt2img.cli.verify import COMMAND
        case "decode":
            from txt2img.cli.decode import COMMAND
        case "train":
            from txt2img.cli.train import COMMAND
        case "worker":
            from txt2img.cli.worker import COMMAND
        case _:
            from txt2img.cli.generate import COMMAND
    return COMMAND
