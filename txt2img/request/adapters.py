"""LoRAs, embeddings, VAE and refiner as a request names them; A1111's <lora:…> tags."""

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from txt2img.errors import BadRequest
from txt2img.system.text import escape, shown

T = TypeVar("T")
Ref = TypeVar("Ref", bound="FileRef")

NAME_MAX = 255  # characters
WEIGHT_MAX = sys.float_info.max
# A1111's tag for a LoRA; its LyCORIS extension's came to mean the same.
_TAG = re.compile(r" ?<(?:lora|lyco):([^>]*)>")

_EMBEDDING = re.compile(r"(?<!\w)embedding:([^\s,:()]+)")  # ComfyUI's tag for a learnt word


@dataclass(frozen=True)
class Lora:
    """A LoRA by its file's name without ".safetensors", and its two strengths.

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
    """A textual-inversion embedding by the word that stands for it; `hash` as a LoRA's."""

    token: str
    hash: str = ""

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        _check_name("an embedding's word", self.token, ':,"')
        _check_hash(self.token, self.hash)


@dataclass(frozen=True)
class FileRef:
    """A model file or folder by its name; `hash` has ten digits."""

    name: str
    hash: str = ""
    what: ClassVar[str]

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        _check_name(self.what, self.name, "")
        _check_hash(self.name, self.hash)


class VAERef(FileRef):
    """A VAE used in place of the model's own."""

    what = "a VAE"


class Refiner(FileRef):
    """A model that draws the last steps."""

    what = "a refiner"


def strip_lora_tags(prompt: str, notes: list[str] | None = None) -> tuple[str, tuple[Lora, ...]]:
    """A prompt without its `<lora:…>` tags, and the LoRAs they ask for.

    BadRequest for a broken tag, unless there are `notes`: then it adds one, and the tag is dropped.
    """
    loras: list[Lora] = []
    matches = [*_TAG.finditer(prompt)] if "<" in prompt else []
    for match in matches:
        try:
            loras.append(_from_tag(match[1]))
        except BadRequest as error:
            if notes is None:
                raise
            notes.append(f"{error}; left out")
    return (_TAG.sub("", prompt).strip() if matches else prompt), tuple(loras)


def strip_embedding_prefixes(prompt: str) -> tuple[str, tuple[str, ...]]:
    """A prompt with ComfyUI's `embedding:name` as the name alone, and these names."""
    words: list[str] = []

    def word(match: re.Match[str]) -> str:
        words.append(re.sub(r"\.(safetensors|pt|bin)$", "", re.split(r"[\\/]", match[1])[-1]))
        return words[-1]

    return _EMBEDDING.sub(word, prompt), tuple(filter(None, words))


def add_lora_tags(prompt: str, loras: Iterable[Lora]) -> str:
    """The prompt with a tag for each LoRA at its end, as A1111 reads it."""
    return " ".join([*([prompt] if prompt else []), *map(_tag, loras)])


def parse_lora(text: str) -> Lora:
    """Parse NAME[:W[:TE]]. BadRequest."""
    name, *weights = text.split(":")
    if len(weights) > 2:
        raise BadRequest(f"a LoRA is NAME[:W[:TE]], got {shown(text)}")
    strengths = [parse_weight(part, name) for part in weights or ["1"]]
    return Lora(name.strip(), strengths[0], strengths[-1])


def parse_weight(text: str, name: str) -> float:
    """Parse a LoRA's strength. BadRequest with the LoRA's name."""
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"LoRA {shown(name)}: {shown(text)} is no weight; write 0.8") from None


def _from_tag(arguments: str) -> Lora:
    """Parse A1111's `name`, `name:w`, `name:text:unet`, or these by keyword (te=, unet=)."""
    parts = arguments.split(":")
    positional = [part for part in parts if "=" not in part]
    keywords = dict(part.split("=", 1) for part in parts[1:] if "=" in part)
    unknown = [key for key in keywords if key not in ("te", "unet")]
    if len(positional) > 3 or unknown or "=" in parts[0]:
        raise BadRequest(f"<lora:{escape(arguments)}>: write <lora:name:w> or <lora:name:te:unet>")
    text = positional[1] if len(positional) > 1 else "1"
    text = keywords.get("te", text)
    unet = keywords.get("unet", positional[2] if len(positional) > 2 else text)
    name = re.split(r"[\\/]", positional[0])[-1].strip()  # without the folders
    return Lora(name, parse_weight(unet, parts[0]), parse_weight(text, parts[0]))


def _tag(lora: Lora) -> str:
    weights = f"{lora.text!r}" if lora.text == lora.unet else f"{lora.text!r}:{lora.unet!r}"
    return f"<lora:{lora.name}:{weights}>"


def find_words(words: Iterable[str], text: str) -> Iterator[tuple[int, int, str]]:
    """Occurrences of words in a text: start, end, word. Longest first, in any case.

    A word counts only as a word of its own, not within another.
    """
    longest = sorted(words, key=lambda word: (-len(word), word))
    pattern = re.compile("|".join(map(_whole_word, longest)) or "(?!)", re.IGNORECASE)
    for match in pattern.finditer(text):
        yield match.start(), match.end(), longest[(match.lastindex or 1) - 1]


def _whole_word(word: str) -> str:
    """A pattern of the word that does not begin or end within another."""
    left = r"(?<!\w)" if re.match(r"\w", word) else ""
    right = r"(?!\w)" if re.match(r"\w", word[-1:]) else ""
    return f"{left}({re.escape(word)}){right}"


def object_from_json(kind: Callable[..., T], field: str, value: object) -> T:
    """A `kind` from a JSON object. BadRequest names the request's field."""
    if not isinstance(value, dict):
        raise BadRequest(f"{field}: {shown(value)} is not an object")
    try:
        return kind(**value)
    except TypeError:
        keys = ", ".join(shown(key) for key in value)
        raise BadRequest(f"{field}: not what such an object holds: {keys}") from None


def ref_from_json(kind: type[Ref], field: str, value: object) -> Ref:
    """A file from its name or a JSON object. BadRequest names the request's field."""
    if isinstance(value, kind):
        return value
    return kind(value) if isinstance(value, str) else object_from_json(kind, field, value)


def sparse_json(item: Any) -> dict[str, object]:
    """A dataclass as a JSON object, without the fields at their defaults."""
    values = asdict(item)
    return {f.name: values[f.name] for f in fields(item) if getattr(item, f.name) != f.default}


def objects_from_json(kind: Callable[..., T], field: str, value: object) -> tuple[T, ...]:
    """As many from a list of JSON objects. BadRequest."""
    if not isinstance(value, list | tuple):
        raise BadRequest(f"{field} must be a list, got {shown(value)}")
    return tuple(object_from_json(kind, field, item) for item in value)


def _check_name(what: str, name: object, banned: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_MAX or name != name.strip():
        raise BadRequest(f"{what} needs a name of 1 … {NAME_MAX} characters, got {shown(name)}")
    if any(c in banned for c in name) or escape(name) != name:
        signs = f" {' '.join(banned)}" if banned else ""
        raise BadRequest(f"{what} cannot be named {shown(name)}: rename the file, without{signs}")


def _check_weight(name: str, value: object) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.inf
    if not abs(number) <= WEIGHT_MAX:
        raise BadRequest(f"LoRA {shown(name)}: its weight must be a number, got {shown(value)}")


def _check_hash(name: str, value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{0,64}", value):
        raise BadRequest(f"{shown(name)}: no hash: {shown(value)}")
