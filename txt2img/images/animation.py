"""The way to a picture: its single steps as PNG files, and all of them as one animation.

Such a file says what it is under a name of its own, and nothing under those that a picture's record
has: no batch takes it for a result, and no earlier picture is replaced by it.
"""

import json
import os
from collections.abc import Sequence
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.errors import BadFile
from txt2img.images import exif, output, png
from txt2img.images.record import Origin
from txt2img.request import Request
from txt2img.system.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

STEP_KEY = "txt2img-step"  # what such a file says of itself, of which picture it is
FORMAT = 1  # of the record
KINDS = ("webp", "gif", "png")
SECONDS = 3.0  # all steps of an animation take about so long
SHOWN = (40, 250)  # milliseconds: the least and the most that one step is shown
HELD = 2000  # milliseconds: how long the picture stands at the end


def record(request: Request, origin: Origin, step: int | None, steps: int) -> str:
    """What a file says of itself: which step of which picture, or (None) that it is all of them."""
    kind = {"animation": steps} if step is None else {"step": step, "steps": steps}
    named = request.to_json() | {"model": origin.model}  # a name: never the path the user gave
    model = origin.to_json()["model"]
    return json.dumps({STEP_KEY: FORMAT, **kind, "request": named, "model": model})


def still(image: "Image.Image", record: str) -> bytes:
    """The PNG file of one step."""
    return png.encode(image, {STEP_KEY: record})


def animation(frames: "Sequence[Image.Image]", kind: str, record: str) -> bytes:
    """All frames as a WebP, GIF or PNG file that plays again and again; the last one is held."""
    steps = max(len(frames) - 1, 1)
    shown = min(max(round(1000 * SECONDS / steps), SHOWN[0]), SHOWN[1])
    ways: dict[str, dict[str, object]] = {
        "webp": {"exif": exif.to_exif({STEP_KEY: record}), "quality": 90},
        "gif": {"comment": record.encode()},
        "png": {"pnginfo": png.text_chunks({STEP_KEY: record})},
    }
    file = BytesIO()
    frames[0].save(
        file,
        kind,
        save_all=True,
        append_images=list(frames[1:]),
        duration=[shown] * (len(frames) - 1) + [HELD],
        loop=0,
        **ways[kind],
    )
    return file.getvalue()


def name_of(picture: str, step: int, steps: int) -> str:
    """The file name of a step of the picture called so: all of one picture sort in order."""
    digits = max(3, len(str(steps)))
    return f"{os.path.splitext(picture)[0]}-step-{step:0{digits}}.png"


def animated_name(picture: str, kind: str) -> str:
    """The file name of the animation of the picture called so, which is never the picture's own."""
    stem, suffix = os.path.splitext(picture)
    return f"{stem}-steps.{kind}" if suffix.lower() == f".{kind}" else f"{stem}.{kind}"


def is_step_file(path: Path) -> bool:
    """Whether a file is a step's or an animation, by what it says of itself."""
    from PIL import ExifTags, Image

    try:
        with open_regular(path) as file, Image.open(file, formats=("PNG", "WEBP", "GIF")) as image:
            held = exif.own_texts(image.getexif().get(ExifTags.Base.ImageHistory))
            comment = image.info.get("comment", b"")
            return STEP_KEY in image.info or STEP_KEY in held or f'{{"{STEP_KEY}":' in repr(comment)
    except (BadFile, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def write(data: bytes, path: Path, overwrite: bool = False) -> Path:
    """Write in place of an earlier one of these files, never of another: that has its own name.

    Gives the path. BadOutput.
    """
    if overwrite or not os.path.lexists(path) or is_step_file(path):
        output.publish(data, path, overwrite=True, lasting=False)
        return path
    return output.Output(path.parent, "").write_beside(data, path.name)


def grid(images: "Sequence[Image.Image]") -> "Image.Image":
    """Pictures of one size side by side, in a square as nearly as may be."""
    if len(images) == 1:
        return images[0]
    from PIL import Image

    columns = ceil(sqrt(len(images)))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
