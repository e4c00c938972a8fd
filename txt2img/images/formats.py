"""The formats that pictures are written in: PNG loses nothing; the others are smaller."""

from dataclasses import dataclass
from pathlib import PurePath

from txt2img.errors import BadRequest
from txt2img.system.text import shown

QUALITIES = range(1, 101)


@dataclass(frozen=True)
class Format:
    """A format as Pillow calls it, and how much of a picture is to be kept of it."""

    name: str
    suffix: str
    quality: int | None = None  # None: nothing is lost, or there is nothing to choose


PNG = Format("PNG", ".png")
# Where a loss can hardly be seen.
FORMATS = {
    "png": PNG,
    "jpeg": Format("JPEG", ".jpg", 95),
    "webp": Format("WEBP", ".webp", 90),
    "avif": Format("AVIF", ".avif", 80),
}
SUFFIXES = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".avif": "avif",
}


def named(name: str) -> Format:
    """The format of that name. BadRequest."""
    wanted = name.lower().removeprefix(".").replace("jpg", "jpeg")
    if wanted not in FORMATS:
        raise BadRequest(f"no format {shown(name)}; choose from {', '.join(FORMATS)}")
    return FORMATS[wanted]


def of(name: str) -> Format | None:
    """The format that a file's name tells; None if it tells none."""
    kind = SUFFIXES.get(PurePath(name).suffix.lower())
    return None if kind is None else FORMATS[kind]
