"""Names of the commands and of the verbs of `txt2img models`."""

from collections.abc import Callable

NAMES = ("generate", "info", "models", "replay", "verify", "decode", "train", "worker")
MODEL_VERBS = ("list", "show", "path", "hash", "pull")

Command = tuple[Callable[..., None], str]  # the function, and the epilog of its --help
