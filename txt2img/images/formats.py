"""The formats of picture files: PNG is lossless, SVG is traced, the others are smaller."""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePath

from txt2img.errors import BadRequest
from txt2img.system.text import shown

QUALITIES = range(1, 101)
HEAD = 16  # bytes of a file that tell its format


@dataclass(frozen=True)
class Format:
    """A format, by Pillow's name."""

    name: str
    suffixes: tuple[str, ...]  # new files get the first
    magic: bytes  # a pattern of a file's first bytes
    quality: int | None = None  # None: it has none to choose
    exif_max: int | None = None  # bytes of EXIF data, if they are bounded
    alpha: bool = True  # whether it holds transparency

    @property
    def suffix(self) -> str:
        """The suffix of a new file."""
        return self.suffixes[0]


PNG = Format("PNG", (".png",), rb"\x89PNG\r\n\x1a\n")
SVG = Format("SVG", (".svg",), rb"<svg\s|<\?xml\s")
# The qualities are those where a loss can hardly be seen. A JPEG has its EXIF data in one segment.
FORMATS = {
    "png": PNG,
    "jpeg": Format("JPEG", (".jpg", ".jpeg"), rb"\xff\xd8\xff", 95, exif_max=65_533, alpha=False),
    "webp": Format("WEBP", (".webp",), rb"RIFF.{4}WEBP", 90),
    "avif": Format("AVIF", (".avif",), rb".{4}ftypavi[fs]", 80),
    "svg": SVG,
}
PILLOW_NAMES = tuple(format.name for format in FORMATS.values() if format is not SVG)
LOSSY = ", ".join(name for name, format in FORMATS.items() if format.quality is not None)


def by_name(name: str) -> Format:
    """The format of that name or suffix. BadRequest."""
    bare = name.lower().removeprefix(".")
    for key, format in FORMATS.items():
        if bare == key or f".{bare}" in format.suffixes:
            return format
    raise BadRequest(f"no format {shown(name)}; choose from {', '.join(FORMATS)}")


def by_suffix(name: str) -> Format | None:
    """The format that a file's name tells; None if it tells none."""
    suffix = PurePath(name).suffix.lower()
    return next((format for format in FORMATS.values() if suffix in format.suffixes), None)


def by_content(head: bytes) -> Format | None:
    """The format that a file's first bytes tell; None if it is none of these."""
    matches = (f for f in FORMATS.values() if re.match(f.magic, head, re.DOTALL))
    return next(matches, None)


def check_writable(format: Format) -> None:
    """Raise BadRequest if the format's encoder is not installed."""
    if format.name == PNG.name:
        return
    if format.name == SVG.name:
        if find_spec("vtracer") is None:
            raise BadRequest("svg needs the package vtracer: pip install vtracer")
        return
    from PIL import features

    if not features.check(format.suffix[1:]):  # Pillow's name of the codec
        raise BadRequest(
            f"this Pillow writes no {format.name}: install one that does, or choose --format png"
        )
