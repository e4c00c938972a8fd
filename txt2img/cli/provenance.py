"""What a picture must say of itself, to be drawn again."""

from collections.abc import Iterable
from pathlib import Path

from txt2img.errors import BadRequest
from txt2img.images import image_file
from txt2img.request.request import Request
from txt2img.system.text import escape, shown


def requested(path: Path, found: image_file.ImageInfo) -> Request:
    """What a picture was drawn from. BadRequest if it does not say."""
    if found.request is None:
        raise BadRequest(f"{shown(str(path))} does not say how it was drawn")
    return found.request


def with_model(path: Path, found: image_file.ImageInfo, chosen: str | None) -> Request:
    """The same, with the model to draw it with, which a picture names but cannot find.

    BadRequest unless that is `chosen`, or in the package.
    """
    request = requested(path, found)
    check_model(path, request, chosen)
    return request


def check_model(path: Path, request: Request, chosen: str | None) -> None:
    """Raise BadRequest unless the model to draw with is `chosen`, or in the package."""
    if chosen is None and request.model != "default":
        name = shown(request.model)
        raise BadRequest(f"{shown(str(path))} was drawn by the model {name}; give its --model")


def changed(then: Iterable[image_file.Origin], now: image_file.Origin) -> list[str]:
    """A line for each thing that is not as it was when pictures were drawn, each said once."""
    lines = []
    for made_by in then:
        if made_by.hash and made_by.hash != now.hash:
            hashes = f"{escape(made_by.hash)}, this one {now.hash}"
            lines.append(f"the picture's model has the hash {hashes}")
        for name, value in now.environment.items():
            old = made_by.environment.get(name, value)
            if old != value:
                lines.append(f"{name} was {shown(old)}, now {value}; bytes may differ")
    return list(dict.fromkeys(lines))
