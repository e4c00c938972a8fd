"""Provenance of pictures: the request and model that a replay needs, and what has changed."""

from collections.abc import Iterable
from pathlib import Path

from txt2img.errors import BadRequest
from txt2img.images.record import ImageInfo, Origin
from txt2img.request.request import Request
from txt2img.system.text import escape, shown


def request_of(path: Path, content: ImageInfo) -> Request:
    """The request that a picture records. BadRequest if it records none."""
    if content.request is None:
        raise BadRequest(f"{shown(str(path))} does not say how it was drawn")
    return content.request


def require_model(path: Path, request: Request, model: str | None) -> None:
    """Raise BadRequest unless `model` is given, or the picture's is the default one.

    A picture records its model's name, which does not tell where the model is now. Other programs'
    pictures may have none, which never means the default model.
    """
    if model is None and not request.model:
        raise BadRequest(f"{shown(str(path))} does not name its model; give --model")
    if model is None and request.model != "default":
        name = shown(request.model)
        raise BadRequest(f"{shown(str(path))} was drawn by the model {name}; give its --model")


def differences(then: Iterable[Origin], now: Origin) -> list[str]:
    """Lines for what has changed since pictures were drawn: model hash, versions, device."""
    lines = []
    for origin in then:
        if origin.hash and origin.hash != now.hash:
            hashes = f"the hash {escape(origin.hash)}, this one {now.hash}"
            if origin.model == now.model == "default":  # its weights come with the program
                lines.append(f"the picture is of another version's default model: it has {hashes}")
            else:
                lines.append(f"the picture's model has {hashes}")
        if origin.config and now.config and origin.config != now.config:
            lines.append("the picture's model had other configs or tokenizer files")
        for name, value in now.environment.items():
            old = origin.environment.get(name, value)
            if old != value:
                lines.append(f"{name} was {shown(old)}, now {value}; bytes may differ")
    return list(dict.fromkeys(lines))
