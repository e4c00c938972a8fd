"""The record in a picture, as two texts: its request, its model and the environment.

`parameters` is A1111's text, for other programs. `txt2img` is a JSON object with the whole request,
the model's name and hash and the environment. Neither holds a path, a user, a host or a time, so
the same request gives the same bytes.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from txt2img.errors import BadRequest
from txt2img.images.metadata import a1111, readers
from txt2img.images.metadata.parsed import json_object, written_json
from txt2img.request import Request
from txt2img.system.files import parse_json
from txt2img.system.text import shown
from txt2img.system.version import __version__

if TYPE_CHECKING:
    from PIL import Image

FORMAT = 1  # of the JSON text


@dataclass(frozen=True)
class Origin:
    """The origin of a picture besides its request: the model and the environment."""

    model: str = ""
    hash: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    config: str = ""  # the hash of its configs and tokenizers; earlier versions recorded none

    def to_json(self) -> dict[str, object]:
        """The two objects of a record that hold it."""
        model = {"name": self.model, "hash": self.hash}
        model |= {"config": self.config} if self.config else {}
        return {"model": model, "environment": dict(self.environment)}

    @classmethod
    def from_json(cls, model: object, environment: object) -> Self:
        """The origin in a record's two objects. ValueError."""
        names = json_object(model)
        values = {key: str(value) for key, value in json_object(environment).items()}
        name, hash, config = (str(names.get(key, "")) for key in ("name", "hash", "config"))
        return cls(name, hash, values, config)


@dataclass(frozen=True)
class ImageInfo:
    """A picture's size, its texts and the request that they hold."""

    width: int
    height: int
    texts: dict[str, str]  # all of them, by their keys
    request: Request | None = None
    origin: Origin = field(default_factory=Origin)
    pixels_sha256: str = ""
    first_seed: int | None = None  # the seed asked for, if its picture was rejected
    notes: tuple[str, ...] = ()  # what could not be understood


def metadata(
    request: Request, origin: Origin, pixels: str, first_seed: int | None = None
) -> dict[str, str]:
    """Both texts of a picture; `pixels` is the hash of its pixels."""
    request = replace(request, model=origin.model)  # a name: never the path that the user gave
    record = {
        "version": FORMAT,
        "request": request.to_json(),
        **origin.to_json(),
        "pixels_sha256": pixels,
    } | ({} if first_seed is None else {"first_seed": first_seed})
    parameters = a1111.describe(request, origin.model, origin.hash, __version__)
    return {"parameters": str(parameters), "txt2img": json.dumps(record, ensure_ascii=False)}


def pixels_sha256(image: "Image.Image") -> str:
    """The hash (64 hex digits) of a picture's pixels alone."""
    return sha256(image.tobytes()).hexdigest()


def parse_texts(info: ImageInfo) -> ImageInfo:
    """The picture with the request in its texts: ours if that is whole, else another program's."""
    notes: list[str] = []
    for name, parse in PARSERS.items():
        try:
            parsed = parse(info)
        except (ValueError, BadRequest) as error:
            notes.append(f"{name} cannot be used: {error}")
        else:
            if parsed is not None:
                return replace(parsed, notes=(*notes, *parsed.notes))
    return replace(info, notes=tuple(notes))


def _ours(info: ImageInfo) -> ImageInfo | None:
    if "txt2img" not in info.texts:
        return None
    record = json_object(parse_json(info.texts["txt2img"]))
    if record.get("version") != FORMAT:
        raise ValueError(f"version {shown(record.get('version'))}, known is {FORMAT}")
    first_seed = record.get("first_seed")
    if first_seed is not None and type(first_seed) is not int:
        raise ValueError("its first seed is no number")
    return replace(
        info,
        request=Request.from_json(json_object(record.get("request"))),
        origin=Origin.from_json(record.get("model", {}), record.get("environment", {})),
        pixels_sha256=str(record.get("pixels_sha256", "")),
        first_seed=first_seed,
    )


def _a1111(info: ImageInfo) -> ImageInfo | None:
    text = info.texts.get("parameters")
    if text is None or written_json({"parameters": text}):  # Fooocus and SwarmUI write JSON there
        return None
    infotext = a1111.parse(text)
    request, notes = a1111.to_request(infotext)
    if not infotext.entries.get("Version", "").startswith("txt2img"):
        request = _without_default_model(request)
    origin = Origin(infotext.entries.get("Model", ""), infotext.entries.get("Model hash", ""))
    request, notes = _with_size(info, request, notes)
    return replace(info, request=request, origin=origin, notes=tuple(notes))


def _others(info: ImageInfo) -> ImageInfo | None:
    parsed = readers.read(info.texts)
    if parsed is None:
        return None
    request, notes = readers.to_request(parsed)
    request, notes = _with_size(info, _without_default_model(request), notes)
    return replace(
        info, request=request, origin=Origin(request.model, parsed.hash), notes=tuple(notes)
    )


def _without_default_model(request: Request) -> Request:
    """Another program's request; where it names no model, it does not mean our default one."""
    return replace(request, model="") if request.model == "default" else request


def _with_size(info: ImageInfo, request: Request, notes: list[str]) -> tuple[Request, list[str]]:
    """The request with the picture's own size, where the text has none."""
    if request.width is not None or request.height is not None:
        return request, notes
    try:
        return replace(request, width=info.width, height=info.height), notes
    except BadRequest as error:
        return request, [*notes, f"it records no size, and the picture's {error}"]


PARSERS: Mapping[str, Callable[[ImageInfo], ImageInfo | None]] = {
    "its txt2img text": _ours,
    "its parameters text": _a1111,
    "another program's text": _others,
}
