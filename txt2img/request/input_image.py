"""Pictures that a request begins from, as it names them, and the words for how they are used."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path

from txt2img.errors import BadRequest
from txt2img.request.adapters import object_from_json
from txt2img.request.sampler_names import Name, NameRow
from txt2img.system.text import shown

STDIN = "-"
UNNAMED = "?"  # a picture that a record does not name
NAME_MAX = 4096  # characters of a path
MARGIN_MAX = 4096  # pixels
NOTES_MAX = 20


@dataclass(frozen=True)
class ImageRef:
    """A picture by its file's name and the hash of its decoded pixels, as records have it.

    Until it is found the hash is empty, and the name may be a path.
    """

    name: str
    hash: str = ""  # 64 hex digits

    def __post_init__(self) -> None:
        """Check every field. BadRequest."""
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= NAME_MAX:
            raise BadRequest(f"a picture needs a file's name, got {shown(self.name)}")
        if "\0" in self.name or any(0xD800 <= ord(c) <= 0xDFFF for c in self.name):
            raise BadRequest(f"a picture cannot be named {shown(self.name)}: it is no text")
        if not isinstance(self.hash, str) or not re.fullmatch("([0-9a-f]{64})?", self.hash):
            raise BadRequest(f"{shown(self.name)}: no hash of pixels: {shown(self.hash)}")

    def __str__(self) -> str:
        return self.name


def image_from_json(value: object) -> ImageRef:
    """A picture from a path or a JSON object. BadRequest."""
    if isinstance(value, ImageRef):
        return value
    if isinstance(value, str):
        return ImageRef(value)
    return object_from_json(ImageRef, "a picture", value)


def images_from_json(value: object) -> tuple[ImageRef, ...]:
    """Pictures from a list of paths or JSON objects, or from one path. BadRequest."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        raise BadRequest(f"pictures must be a list of paths or objects, got {shown(value)}")
    return tuple(map(image_from_json, value))


def map_images(value: object, change: Callable[[ImageRef], ImageRef]) -> object:
    """A value with the pictures in it changed: those of its items or fields, however deep."""
    if isinstance(value, ImageRef):
        return change(value)
    if isinstance(value, tuple):
        return tuple(map_images(item, change) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    old = {part.name: getattr(value, part.name) for part in fields(value)}
    new = {name: map_images(part, change) for name, part in old.items()}
    changed = {name: part for name, part in new.items() if part != old[name]}
    return replace(value, **changed) if changed else value


@dataclass(frozen=True)
class Margins:
    """Pixels by which outpainting makes a picture larger, at each side."""

    left: int = 0
    up: int = 0
    right: int = 0
    down: int = 0

    def __post_init__(self) -> None:
        """Check every side. BadRequest."""
        for side in fields(self):
            value = getattr(self, side.name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not 0 <= value <= MARGIN_MAX or value % 8:
                raise BadRequest(
                    f"outpaint {side.name}: a multiple of 8 pixels, 0 … {MARGIN_MAX:,}; "
                    f"got {shown(value)}"
                )
        if not any((self.left, self.up, self.right, self.down)):
            raise BadRequest("outpaint needs pixels at a side, as all=128 or left=64,up=32")

    def __str__(self) -> str:
        sides = {side.name: getattr(self, side.name) for side in fields(self)}
        if len(set(sides.values())) == 1:
            return f"all={self.left}"
        return ",".join(f"{side}={pixels}" for side, pixels in sides.items() if pixels)


SIDES: Mapping[str, tuple[str, ...]] = {
    **{side: (side,) for side in ("left", "up", "right", "down")},
    "top": ("up",),
    "bottom": ("down",),
    "all": ("left", "up", "right", "down"),
}


def margins_from_json(value: object) -> Margins:
    """Margins from a JSON object, or from `all=128` or `left=64,up=32`. BadRequest."""
    if isinstance(value, Margins):
        return value
    if not isinstance(value, str):
        return object_from_json(Margins, "outpaint", value)
    pixels: dict[str, int] = {}
    for part in re.split(r"[,;\s]+", value.strip()):
        match = re.fullmatch(r"(?:([a-z]+)=)?([0-9]{1,6})", part.lower())
        if match is None or (match[1] or "all") not in SIDES:
            raise BadRequest(f"outpaint is all=128, or left=64,up=32; got {shown(value)}")
        pixels |= dict.fromkeys(SIDES[match[1] or "all"], int(match[2]))
    return Margins(**pixels)


class Resize(Name):
    """How a picture of another shape comes to the size asked for; the numbers are A1111's."""

    CROP = NameRow("crop", "Crop and resize", ("crop_and_resize", "1"), is_default=True)
    FILL = NameRow("fill", "Resize and fill", ("resize_and_fill", "pad", "2"))
    STRETCH = NameRow("stretch", "Just resize", ("just_resize", "0"))


class InpaintFill(Name):
    """What lies under the mask at the start; the numbers are A1111's."""

    ORIGINAL = NameRow("original", aliases=("1",), is_default=True)
    FILL = NameRow("fill", aliases=("0",))
    NOISE = NameRow("noise", "latent noise", ("latent_noise", "2"))
    ZERO = NameRow("zero", "latent nothing", ("latent_nothing", "nothing", "3"))


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a picture once it was read."""

    size: tuple[int, int]  # width, height
    transparent: bool  # in part
    shades: tuple[int, int]  # the darkest and the lightest, as a mask


@dataclass
class ImagePaths:
    """Where the pictures lie that requests begin from; grows as they are found."""

    folders: tuple[Path, ...] = ()  # to search, of --image-dir
    beside: list[Path] = field(default_factory=list)  # of records and prompt files: names only
    stdin: bytes | None = None  # the file that "-" is
    embedded: dict[str, bytes] = field(default_factory=dict)  # files inside prompt files, by name
    files: dict[str, Path] = field(default_factory=dict)  # by hash
    contents: dict[str, bytes] = field(default_factory=dict)  # of those that are no files, by hash
    facts: dict[str, ImageFacts] = field(default_factory=dict)  # by hash
    # By path: its file's key and the picture's hash.
    seen: dict[Path, tuple[tuple[int, int, int], str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # for the user
    multiple: int = 8  # pixels, of the sides that a picture without a size asked for is drawn at

    def fit_to(self, multiple: int) -> None:
        """Take a model's multiple; lines on sizes by another one are forgotten."""
        if multiple != self.multiple:
            self.multiple = multiple
            self.notes.clear()

    def note(self, line: str) -> None:
        """Add a line for the user, once; of many pictures only the first ones' lines."""
        if len(self.notes) == NOTES_MAX:
            self.notes.append("and so with more pictures")
        elif len(self.notes) < NOTES_MAX and line not in self.notes:
            self.notes.append(line)
