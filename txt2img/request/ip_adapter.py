"""IP-Adapters as a request names them: a model, pictures, a weight and an interval each.

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion
Models".
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from txt2img.errors import BadRequest
from txt2img.request.adapters import FileRef, object_from_json, ref_from_json
from txt2img.request.control import (
    ALL_STEPS,
    WEIGHT_MAX,
    check_weight,
    items_from_json,
    option_text,
    parse_use,
)
from txt2img.request.input_image import ImageRef, images_from_json
from txt2img.request.interval import Interval, interval_from_json
from txt2img.system.text import shown

OPTION = "--ip-adapter"
USAGE = "MODEL:IMAGE[,IMAGE…][:WEIGHT[:START..END]], as plus:face.png:0.6:0..0.8"


class IPAdapterRef(FileRef):
    """An IP-Adapter by its file's name; until it is found the name may be a path."""

    what = "an IP-Adapter"


class ImageEncoderRef(FileRef):
    """The CLIP image encoder that IP-Adapters read pictures by."""

    what = "an image encoder"


@dataclass(frozen=True)
class IPAdapterUse:
    """An IP-Adapter and the pictures that are its prompt; weights below 0 lead away from them."""

    model: IPAdapterRef
    images: tuple[ImageRef, ...]
    weight: float = 1.0
    interval: Interval = ALL_STEPS  # of the steps
    encoder: ImageEncoderRef | None = None  # that read the pictures, once it is found

    def __post_init__(self) -> None:
        """Check pictures and weight. BadRequest."""
        if not self.images:
            raise BadRequest(f"ip-adapter: {shown(self.model.name)} needs a picture")
        check_weight("ip-adapter", self.weight, -WEIGHT_MAX)

    def __str__(self) -> str:
        """The option's text."""
        images = ",".join(image.name for image in self.images)
        return option_text((self.model.name, images), self.weight, self.interval)


def ip_adapters_from_json(value: object) -> tuple[IPAdapterUse, ...]:
    """IP-Adapters from a list of objects or of the option's texts, or from one. BadRequest."""
    return items_from_json(_from_json, value)


def _from_json(value: object) -> IPAdapterUse:
    """An IP-Adapter from a JSON object or the option's text. BadRequest."""
    if isinstance(value, IPAdapterUse):
        return value
    if isinstance(value, str):
        return parse_ip_adapter(value)
    if not isinstance(value, dict) or "model" not in value:
        raise BadRequest(f"ip-adapter: {shown(value)} is no object with a model and images")
    named = {"images" if key == "image" else key: part for key, part in value.items()}
    values = {k: FROM_JSON[k](v) if k in FROM_JSON else v for k, v in named.items()}
    return object_from_json(IPAdapterUse, "ip-adapter", values)


def _images_from_json(value: object) -> tuple[ImageRef, ...]:
    one = isinstance(value, dict | ImageRef)
    return images_from_json([value] if one else value)


def _encoder_from_json(value: object) -> ImageEncoderRef | None:
    if value is None or isinstance(value, ImageEncoderRef):
        return value
    return object_from_json(ImageEncoderRef, "ip-adapter", value)


FROM_JSON: Mapping[str, Callable[[object], object]] = {
    "model": partial(ref_from_json, IPAdapterRef, "ip-adapter"),
    "images": _images_from_json,
    "interval": interval_from_json,
    "encoder": _encoder_from_json,
}


def parse_ip_adapter(text: str) -> IPAdapterUse:
    """Parse MODEL:IMAGE[,IMAGE…][:WEIGHT[:START..END]]. BadRequest."""
    use = parse_use(text, OPTION, USAGE)
    if use.type:
        raise BadRequest(f"{OPTION} is {USAGE}; got {shown(text)}")
    whole = os.path.lexists(os.path.expanduser(use.image))
    names = [use.image] if whole else [part.strip() for part in use.image.split(",")]
    images = tuple(map(ImageRef, filter(None, names)))
    return IPAdapterUse(IPAdapterRef(use.model), images, use.weight, use.interval)
