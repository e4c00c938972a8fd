"""Step previews as files: each step as a PNG, all steps as one animation.

Such a file has a record of its own and none of a picture's: no batch takes it for a result, and it
never replaces a picture.
"""

import json
import os
from collections.abc import Sequence
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.errors import BadFile
from txt2img.images import exif, image_file, output
from txt2img.images.record import Origin
from txt2img.request import Request
from txt2img.system.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

STEP_KEY = "txt2img-step"  # the key of the record
FORMAT = 1  # of the record
KINDS = ("webp", "gif", "png")
SECONDS = 3.0  # that all steps of an animation take, if STEP_SHOWN allows
STEP_SHOWN = (40, 250)  # milliseconds: least and most for one step
LAST_SHOWN = 2000  # milliseconds for the picture at the end


def record(request: Request, origin: Origin, step: int | None, steps: int) -> str:
    """The record of a file: a step of a picture, or the animation of all steps (None)."""
    kind = {"animation": steps} if step is None else {"step": step, "steps": steps}
    named = request.to_json() | {"model": origin.model}  # a name: never the path the user gave
    model = origin.to_json()["model"]
    return json.dumps({STEP_KEY: FORMAT, **kind, "request": named, "model": model})


def still(image: "Image.Image", record: str) -> bytes:
    """The PNG file of one step."""
    return image_file.encode_png(image, {STEP_KEY: record})


def animation(frames: "Sequence[Image.Image]", kind: str, record: str) -> bytes:
    """A WebP, GIF or PNG file that loops over all frames and stays longer at the last."""
    steps = max(len(frames) - 1, 1)
    duration = min(max(round(1000 * SECONDS / steps), STEP_SHOWN[0]), STEP_SHOWN[1])
    options: dict[str, dict[str, object]] = {
        "webp": {"exif": exif.to_exif({STEP_KEY: record}), "quality": 90},
        "gif": {"comment": record.encode()},
        "png": {"pnginfo": image_file.text_chunks({STEP_KEY: record})},
    }
    file = BytesIO()
    frames[0].save(
        file,
        kind,
        save_all=True,
        append_images=list(frames[1:]),
        duration=[duration] * (len(frames) - 1) + [LAST_SHOWN],
        loop=0,
        **options[kind],
    )
    return file.getvalue()


def step_name(picture: str, step: int, steps: int) -> str:
    """The file name of a picture's step; a picture's steps sort in order."""
    digits = max(3, len(str(steps)))
    return f"{os.path.splitext(picture)[0]}-step-{step:0{digits}}.png"


def animated_name(picture: str, kind: str) -> str:
    """The file name of a picture's animation, which is never the picture's own."""
    stem, suffix = os.path.splitext(picture)
    return f"{stem}-steps.{kind}" if suffix.lower() == f".{kind}" else f"{stem}.{kind}"


def is_step_file(path: Path) -> bool:
    """Whether a file is a step or an animation, by its record."""
    from PIL import ExifTags, Image

    try:
        with (
            image_file.pillow_errors(),
            open_regular(path) as file,
            Image.open(file, formats=("PNG", "WEBP", "GIF")) as image,
        ):
            texts = exif.own_texts(image.getexif().get(ExifTags.Base.ImageHistory))
            comment = image.info.get("comment", b"")
            return (
                STEP_KEY in image.info or STEP_KEY in texts or f'{{"{STEP_KEY}":' in repr(comment)
            )
    except (BadFile, ValueError):
        return False


def write(data: bytes, path: Path, overwrite: bool = False) -> Path:
    """Write a step or animation, which replaces only another one; gives its path. BadOutput."""
    if overwrite or not os.path.lexists(path) or is_step_file(path):
        output.write_file(data, path, overwrite=True, fsync=False)
        return path
    return output.Output(path.parent, "").write_beside(data, path.name)


def grid(images: "Sequence[Image.Image]") -> "Image.Image":
    """A grid of pictures of one size, as square as possible."""
    if len(images) == 1:
        return images[0]
    from PIL import Image

    columns = ceil(sqrt(len(images)))
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, ceil(len(images) / columns) * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
