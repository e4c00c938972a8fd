"""Readers of other programs' metadata, A1111's text aside, and the Request that they give.

Each value is checked by the Request's own field or becomes a note. Names of files keep their last
part only, so that none leads anywhere.
"""

import re
from collections.abc import Callable, Mapping

from txt2img.images.metadata import (
    comfyui,
    easy_diffusion,
    fooocus,
    invokeai,
    mflux,
    novelai,
    swarmui,
)
from txt2img.images.metadata.parsed import (
    NO_VAE,
    ParsedMetadata,
    accepted,
    cap,
    file_stem,
    number,
    written_json,
)
from txt2img.request import Request
from txt2img.request.sampler_names import split_sampler

Reader = Callable[[Mapping[str, str]], ParsedMetadata | None]
# The first that knows a picture's texts reads them.
READERS: tuple[Reader, ...] = (
    invokeai.read,
    mflux.read,
    novelai.read,
    fooocus.read,
    swarmui.read,
    comfyui.read,
    easy_diffusion.read,
)


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """Parse a picture's texts, if a known program wrote them. ValueError."""
    for reader in READERS:
        if (parsed := reader(texts)) is not None:
            return parsed
    if written_json(texts):
        raise ValueError("its JSON is of a program that is not known")
    return None


def to_request(parsed: ParsedMetadata) -> tuple[Request, list[str]]:
    """The request, and a note for each setting that cannot be carried over."""
    notes = [*parsed.notes]
    values = {"prompt": "", **parsed.values}
    sampler, schedule = values.get("sampler"), values.get("schedule")
    if isinstance(sampler, str) and isinstance(schedule, str | None):
        values["sampler"], values["schedule"] = split_sampler(sampler, schedule)
    converted = {
        name: CONVERTERS[name](value) if name in CONVERTERS else value
        for name, value in values.items()
    }
    request = Request.from_json({"prompt": "", **accepted(converted, notes)})
    return request, cap(notes)


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
    if not isinstance(value, str):
        return value
    return None if value in NO_VAE else {"name": re.split(r"[\\/]", value)[-1]}


def _picture(value: object) -> object:
    """A picture by the last part of its path, without ComfyUI's folder in brackets."""
    name = value.get("name") if isinstance(value, dict) else value
    if not isinstance(name, str):
        return value
    return {"name": re.split(r"[\\/]", re.sub(r" \[\w+\]$", "", name))[-1]}


def _uses(value: object) -> object:
    """ControlNets or IP-Adapters, their pictures by the last part of their paths."""
    assert isinstance(value, list)
    for one in value:
        if "image" in one:
            one["image"] = _picture(one["image"])
        if "images" in one:
            one["images"] = [_picture(image) for image in one["images"]]
    return value


CONVERTERS: Mapping[str, Callable[[object], object]] = {
    "model": file_stem,
    "loras": _loras,
    "vae": _vae,
    "image": _picture,
    "mask": _picture,
    "controls": _uses,
    "ip_adapters": _uses,
    **{name: number for name in ("width", "height", "steps", "cfg", "cfg_rescale", "seed")},
    "strength": number,
}
