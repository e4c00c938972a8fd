"""What a request wears beside its model: LoRAs, learnt words, another VAE; and A1111's tags."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from txt2img.errors import BadRequest
from txt2img.request.interval import Interval, parse_interval
from txt2img.system.text import escape, shown

T = TypeVar("T")

NAME_MAX = 255  # characters
MAX = sys.float_info.max
# A1111's tag for a LoRA; its LyCORIS extension's came to mean the same.
_TAG = re.compile(r" ?<(?:lora|lyco):([^>]*)>")


@dataclass(frozen=True)
class Lora:
    """An adapter by its file's name without ".safetensors", and how strongly it works.

    `hash` is A1111's: twelve hex digits, empty until the file is found.
    """

    name: str
    unet: float = 1.0
    text: float = 1.0  # on the text encoder
    hash: str = ""

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        _check_name("a LoRA", self.name, ':<>/\\"')
        _check_weight(self.name, self.unet)
        _check_weight(self.name, self.text)
        _check_hash(self.name, self.hash)


@dataclass(frozen=True)
class Embedding:
    """A word that stands for learnt vectors (textual inversion); `hash` as a LoRA's."""

    token: str
    hash: str = ""

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        _check_name("a learnt word", self.token, ':,"')
        _check_hash(self.token, self.hash)


@dataclass(frozen=True)
class VAERef:
    """A VAE in place of the model's own, by its file's or folder's name; `hash` has ten digits."""

    name: str
    hash: str = ""

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        _check_name("a VAE", self.name, "")
        _check_hash(self.name, self.hash)


@dataclass(frozen=True)
class Refiner:
    """A model that finishes what another began, by its name; `hash` has ten digits."""

    name: str
    hash: str = ""

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        _check_name("a refiner", self.name, "")
        _check_hash(self.name, self.hash)


def strip_lora_tags(prompt: str) -> tuple[str, tuple[Lora, ...]]:
    """A prompt without its `<lora:…>` tags, and what they ask for. BadRequest."""
    if "<" not in prompt:
        return prompt, ()
    loras = tuple(_from_tag(match[1]) for match in _TAG.finditer(prompt))
    return (_TAG.sub("", prompt).strip() if loras else prompt), loras


def parse_lora(text: str) -> Lora:
    """The LoRA that NAME[:W[:TE]] means. BadRequest."""
    name, *weights = text.split(":")
    if len(weights) > 2:
        raise BadRequest(f"a LoRA is NAME[:W[:TE]], got {shown(text)}")
    strengths = [parse_weight(part, name) for part in weights or ["1"]]
    return Lora(name.strip(), strengths[0], strengths[-1])


def add_lora_tags(prompt: str, loras: Iterable[Lora]) -> str:
    """The prompt with a tag for each LoRA at its end, as A1111 reads it."""
    return " ".join([*([prompt] if prompt else []), *map(_tag, loras)])


def _from_tag(arguments: str) -> Lora:
    """`name`, `name:w`, `name:text:unet`, or these by name (te=, unet=), as A1111 has it."""
    parts = arguments.split(":")
    plain = [part for part in parts if "=" not in part]
    named = dict(part.split("=", 1) for part in parts[1:] if "=" in part)
    unknown = [key for key in named if key not in ("te", "unet")]
    if len(plain) > 3 or unknown or "=" in parts[0]:
        raise BadRequest(f"<lora:{escape(arguments)}>: write <lora:name:w> or <lora:name:te:unet>")
    text = plain[1] if len(plain) > 1 else "1"
    text = named.get("te", text)
    unet = named.get("unet", plain[2] if len(plain) > 2 else text)
    return Lora(plain[0].strip(), parse_weight(unet, parts[0]), parse_weight(text, parts[0]))


def _tag(lora: Lora) -> str:
    weights = f"{lora.text!r}" if lora.text == lora.unet else f"{lora.text!r}:{lora.unet!r}"
    return f"<lora:{lora.name}:{weights}>"


def parse_weight(text: str, name: str) -> float:
    """The number that `text` is. BadRequest names the LoRA that it was meant for."""
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"LoRA {shown(name)}: {shown(text)} is no weight; write 0.8") from None


def find_words(words: Iterable[str], text: str) -> Iterator[tuple[int, int, str]]:
    """Where a text has which of the words: start, end, word; whatever its case, the longest first.

    A word is found as a word of its own, not within another.
    """
    longest = sorted(words, key=lambda word: (-len(word), word))
    pattern = re.compile("|".join(map(_whole, longest)) or "(?!)", re.IGNORECASE)
    for found in pattern.finditer(text):
        yield found.start(), found.end(), longest[(found.lastindex or 1) - 1]


def _whole(word: str) -> str:
    """A pattern of the word that does not begin or end within another."""
    left = r"(?<!\w)" if re.match(r"\w", word) else ""
    right = r"(?!\w)" if re.match(r"\w", word[-1:]) else ""
    return f"{left}({re.escape(word)}){right}"


def loras_from_json(value: object) -> tuple[Lora, ...]:
    """LoRAs from a list of JSON objects. BadRequest."""
    if not isinstance(value, list | tuple):
        raise BadRequest(f"loras must be a list, got {shown(value)}")
    return tuple(_made(Lora, "loras", item) for item in value)


def embeddings_from_json(value: object) -> tuple[Embedding, ...]:
    """Learnt words from a list of JSON objects. BadRequest."""
    if not isinstance(value, list | tuple):
        raise BadRequest(f"embeddings must be a list, got {shown(value)}")
    return tuple(_made(Embedding, "embeddings", item) for item in value)


def vae_from_json(value: object) -> VAERef | None:
    """A VAE from a JSON object, or None. BadRequest."""
    return None if value is None else _made(VAERef, "vae", value)


def refiner_from_json(value: object) -> Refiner | None:
    """A refiner from a JSON object, or None. BadRequest."""
    return None if value is None else _made(Refiner, "refiner", value)


def interval_from_json(value: object) -> Interval | None:
    """A part of the way from a JSON object or LO..HI; None and all of it are None. BadRequest."""
    if value is None:
        return None
    if isinstance(value, str):
        value = parse_interval(value)
    found = value if isinstance(value, Interval) else _made(Interval, "cfg_interval", value)
    return None if (found.low, found.high) == (0, 1) else found


def _made(kind: Callable[..., T], field: str, value: object) -> T:
    if not isinstance(value, dict):
        raise BadRequest(f"{field}: {shown(value)} is not an object")
    try:
        return kind(**value)
    except TypeError:
        keys = ", ".join(shown(key) for key in value)
        raise BadRequest(f"{field}: not what such an object holds: {keys}") from None


def _check_name(what: str, name: object, banned: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_MAX or name != name.strip():
        raise BadRequest(f"{what} needs a name of 1 … {NAME_MAX} characters, got {shown(name)}")
    if any(c in banned for c in name) or escape(name) != name:
        signs = f" {' '.join(banned)}" if banned else ""
        raise BadRequest(f"{what} cannot be named {shown(name)}: rename the file, without{signs}")


def _check_weight(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX:
        raise BadRequest(f"LoRA {shown(name)}: its weight must be a number, got {shown(value)}")


def _check_hash(name: str, value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{0,64}", value):
        raise BadRequest(f"{shown(name)}: no hash: {shown(value)}")
