"""Shell completion of options' values: fast, without torch, and never an error."""

import os
import re
from collections.abc import Callable, Iterable
from functools import wraps

from txt2img.cli.registry import NAMES
from txt2img.images.formats import FORMATS
from txt2img.request import Sampler, Schedule
from txt2img.request.fields import FIELDS
from txt2img.system.text import escape

FIRST = 2  # words of a line whose first argument is not finished: the program and it
UPSCALER = "upscaler"  # a kind of weight file
Completion = Callable[[str], list[str]]


def completion(values: Callable[[], Iterable[str]]) -> Completion:
    """The completion that offers these values; none if they cannot be read."""

    @wraps(values)
    def complete(incomplete: str) -> list[str]:
        try:
            known = (value for value in values() if value.startswith(incomplete))
            return [value for value in known if escape(value) == value]  # none for the terminal
        except Exception:  # noqa: BLE001 - an error would end up in the user's command line
            return []

    complete.__annotations__ = {"incomplete": str, "return": list[str]}  # which typer reads
    del complete.__wrapped__
    return complete


@completion
def known_models() -> Iterable[str]:
    """Models and other weights on this machine."""
    from txt2img.weights.registry.find import names

    return names()


@completion
def upscalers() -> Iterable[str]:
    """Interpolations of pixels, and upscalers' files on this machine."""
    from txt2img.request.upscalers import OF_PIXELS
    from txt2img.weights.file_kind import kind_of
    from txt2img.weights.registry.find import list_models

    files = (name for name, path in list_models() if path.is_file() and kind_of(path) == UPSCALER)
    return [*OF_PIXELS, *files]


@completion
def preprocessors() -> Iterable[str]:
    """Names of preprocessors; those with a model end in a colon."""
    from txt2img.request.preprocess import Preprocessor

    return [f"{kind}:" if kind.model else kind.value for kind in Preprocessor]


@completion
def hires() -> Iterable[str]:
    """Twice the size, by each of the interpolations."""
    from txt2img.request.upscalers import Interpolation

    return ["2", *(f"2:{how}" for how in Interpolation)]


@completion
def pullable() -> Iterable[str]:
    """Short names of models on the Hub, and those of config.toml."""
    from txt2img.system.user_config import read_config
    from txt2img.weights.registry.aliases import ALIASES

    return sorted(
        {*ALIASES, *(name for name, at in read_config().models.items() if "/" in at.target)}
    )


@completion
def profiles() -> Iterable[str]:
    """Profiles of config.toml."""
    from txt2img.system.user_config import read_config

    return sorted(read_config().profiles)


@completion
def commands() -> Iterable[str]:
    """Commands, for the first word of a line."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    return NAMES if len(line.split()) <= FIRST else ()


def choices(metavar: str | None) -> Completion | None:
    """The completion of the words in a metavar such as auto|on|off; None if it has none."""
    if "|" not in (metavar or ""):
        return None
    words = [one for one in re.split(r"[|\[\]:]", metavar or "") if re.fullmatch(r"[a-z]\w*", one)]
    return completion(lambda: words) if words else None


# Those of train/config.py, which the command line imports only to train.
STAGES = ("vae", "text", "unet", "decoder", "alpha", "distill")
ADAPTERS = ("lora", "embedding", "control")  # further ones, by options of their own


@completion
def swept() -> Iterable[str]:
    """Options that a sweep can vary."""
    return [f"{row.flags[0][2:]}=" for row in FIELDS.values() if row.scalar or row.name == "loras"]


formats = completion(lambda: list(FORMATS))
samplers = completion(lambda: [member.value for member in Sampler])
schedules = completion(lambda: [member.value for member in Schedule])
devices = completion(lambda: ["cpu", "cuda", "mps"])
stages = completion(lambda: [*STAGES, "all"])
rejections = completion(lambda: ["black", "flat", "black,flat"])
dtypes = completion(lambda: ["float32", "bf16", "fp16"])
