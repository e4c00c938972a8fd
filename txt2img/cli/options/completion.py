"""What a shell may offer for an option's value: fast, without torch, and never an error."""

from collections.abc import Callable, Iterable
from functools import wraps

from txt2img.images.formats import FORMATS
from txt2img.request import Sampler, Schedule

Offers = Callable[[str], list[str]]


def offering(values: Callable[[], Iterable[str]]) -> Offers:
    """A completion from all values there are; nothing if they cannot be known."""

    @wraps(values)
    def offers(incomplete: str) -> list[str]:
        try:
            return [value for value in values() if value.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - a shell that waits for a word is told no error
            return []

    offers.__annotations__ = {"incomplete": str, "return": list[str]}
    del offers.__wrapped__
    return offers


@offering
def known_models() -> Iterable[str]:
    """Models on this machine."""
    from txt2img.weights.registry.find import names

    return names()


@offering
def pullable() -> Iterable[str]:
    """Short names of models on the Hub, and the config's."""
    from txt2img.system.user_config import read
    from txt2img.weights.registry.aliases import ALIASES

    return sorted({*ALIASES, *(name for name, at in read().models.items() if "/" in at.target)})


@offering
def profiles() -> Iterable[str]:
    """The config's profiles."""
    from txt2img.system.user_config import read

    return sorted(read().profiles)


formats = offering(lambda: list(FORMATS))
samplers = offering(lambda: [member.value for member in Sampler])
schedules = offering(lambda: [member.value for member in Schedule])
devices = offering(lambda: ["cpu", "cuda", "mps"])
dtypes = offering(lambda: ["float32", "bf16", "fp16"])
