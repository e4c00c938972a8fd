"""Provenance of pictures: the request and model that a replay needs, and what has changed."""

from collections.abc import Collection, Iterable
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.images.record import ImageInfo, Origin
from txt2img.request.input_image import UNNAMED, ImagePaths, ImageRef
from txt2img.request.request import Request
from txt2img.system.text import escape, shown


def request_of(path: Path, content: ImageInfo) -> Request:
    """The request that a picture records. BadRequest if it records none."""
    if content.request is None:
        raise BadRequest(f"{shown(path)} does not say how it was drawn")
    return content.request


def require_model(path: Path, request: Request, model: str | None) -> None:
    """Raise BadRequest unless `model` is given, or the picture's is the default one.

    A picture records its model's name, which does not tell where the model is now. Other programs'
    pictures may have none, which never means the default model.
    """
    if model is None and not request.model:
        raise BadRequest(f"{shown(path)} does not name its model; give --model")
    if model is None and request.model != "default":
        name = shown(request.model)
        raise BadRequest(f"{shown(path)} was drawn by the model {name}; give its --model")


def with_pictures(
    path: Path, request: Request, given: Collection[str], images: ImagePaths
) -> Request:
    """The request of another program's picture, with the paths of what it began from.

    Those have no hash: they are found by their names, beside the picture or in --image-dir. The
    fields in `given` are replaced anyhow. BadFile for what is not there.
    """
    refs = {name: getattr(request, name) for name in ("image", "mask")}
    refs = {name: ref for name, ref in refs.items() if ref and not ref.hash and name not in given}
    found: dict[str, object] = {}
    for name, ref in refs.items():
        places = [folder / Path(ref.name).name for folder in (path.parent, *images.folders)]
        file = next((place for place in places if ref.name != UNNAMED and place.is_file()), None)
        if file is not None:
            found[name] = str(file)
    missing = {name: ref for name, ref in refs.items() if name not in found}
    if missing:
        whats = " and ".join(_described(name, ref) for name, ref in missing.items())
        options = " and ".join(f"--{name}" for name in missing)
        named = any(ref.name != UNNAMED for ref in missing.values())
        where = ", or its folder with --image-dir" if named else ""
        raise BadFile(f"{shown(path)} began from {whats}; give it with {options}{where}")
    return request.with_json(found)


def _described(name: str, ref: ImageRef) -> str:
    what = "a picture" if name == "image" else "a mask"
    if ref.name == UNNAMED:
        return f"{what} that it does not name"
    return f"{what}, {shown(ref.name)}, that is not here"


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
