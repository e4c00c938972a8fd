"""Readers of other programs' metadata, A1111's text aside, and the Request that they give.

Each value is checked by the Request's own field or becomes a note. Names of files keep their last
part only, so that none leads anywhere.
"""

import re
from collections.abc import Callable, Mapping

from txt2img.errors import BadRequest
from txt2img.images.metadata import (
    comfyui,
    easy_diffusion,
    fooocus,
    imaginairy,
    invokeai,
    novelai,
)
from txt2img.images.metadata.parsed import ParsedMetadata, cap, file_stem, number
from txt2img.request import Request

Reader = Callable[[Mapping[str, str]], ParsedMetadata | None]
# The first that knows a picture's texts reads them.
READERS: tuple[Reader, ...] = (
    invokeai.read,
    novelai.read,
    fooocus.read,
    comfyui.read,
    easy_diffusion.read,
    imaginairy.read,
)


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """Parse a picture's texts, if a known program wrote them. ValueError."""
    parsed = (reader(texts) for reader in READERS)
    return next((metadata for metadata in parsed if metadata is not None), None)


def to_request(parsed: ParsedMetadata) -> tuple[Request, list[str]]:
    """The request, and a note for each setting that cannot be carried over."""
    notes = [*parsed.notes]
    values: dict[str, object] = {"prompt": ""}
    for name, value in parsed.values.items():
        try:
            value = CONVERTERS[name](value) if name in CONVERTERS else value
            Request.from_json({"prompt": "", name: value})
        except BadRequest as error:
            notes.append(f"{error}; left to the model")
        else:
            values[name] = value
    return Request.from_json(values), cap(notes)


def _sampler(value: object) -> object:
    """A sampler's name without k-diffusion's prefix and the suffix of a variant."""
    return re.sub(r"^k_|_gpu$", "", value) if isinstance(value, str) else value


def _loras(value: object) -> object:
    """LoRAs by their files' names; a single weight counts for both networks."""
    assert isinstance(value, list)
    return [
        {
            "name": file_stem(lora["name"]),
            "unet": lora["unet"],
            "text": lora.get("text", lora["unet"]),
        }
        for lora in value
    ]


def _vae(value: object) -> object:
    return {"name": value.replace("\\", "/").split("/")[-1]} if isinstance(value, str) else value


CONVERTERS: Mapping[str, Callable[[object], object]] = {
    "model": file_stem,
    "loras": _loras,
    "vae": _vae,
    "sampler": _sampler,
    **{name: number for name in ("width", "height", "steps", "cfg", "cfg_rescale", "seed")},
}
