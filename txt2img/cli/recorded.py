"""What a picture must say of itself, to be drawn again."""

from pathlib import Path

from txt2img import png
from txt2img.errors import BadRequest
from txt2img.escape import shown
from txt2img.request import Request


def requested(path: Path, found: png.Picture) -> Request:
    """What a picture was drawn from. BadRequest if it does not say."""
    if found.request is None:
        raise BadRequest(f"{shown(str(path))} does not say how it was drawn")
    return found.request


def with_model(path: Path, found: png.Picture, chosen: str | None) -> Request:
    """The same, with the model to draw it with, which a picture names but cannot find.

    BadRequest unless that is `chosen`, or in the package.
    """
    request = requested(path, found)
    if chosen is None and request.model != "default":
        name = shown(request.model)
        raise BadRequest(f"{shown(str(path))} was drawn by the model {name}; give its --model")
    return request
