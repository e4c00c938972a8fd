"""Pictures and captions: a folder or a zip archive → tensors.

The Hub's imagefolder convention: `metadata.jsonl` has a row a picture with `file_name` and `text`.
`text` may be a list of captions of the same picture, `weights` says how often each is drawn, and
`background` gives transparent pictures a colour (white when absent), or two from top to bottom.
`layers` puts several pictures on one: each has a `file_name`, the `left`, `top` and `side` of its
square as parts of the whole's, a `hue` that its colours are turned by, as part of a turn, and
`mirrored` where left and right change places.
"""

import io
import json
import random
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from PIL import Image, ImageColor, UnidentifiedImageError
from torch import Tensor

from txt2img.errors import BadFile

METADATA = "metadata.jsonl"
HELD_OUT_FILE = "heldout.jsonl"  # scenes that are not taught, to ask for after training
WORDS_FILE = "words.json"  # what the captions' words stand for, where a data set says so
WHITE = "#ffffff"
LARGE = 0.75  # of a picture's side: a thing as large as this is what the picture is of


@dataclass(frozen=True)
class Layer:
    """A picture's place in a scene, as parts of the scene's side, its hues' turn, its direction."""

    file: str
    left: float = 0.0
    top: float = 0.0
    side: float = 1.0
    hue: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class Row:
    """One training picture: what it is made of, what it may be called, what is behind it."""

    layers: tuple[Layer, ...]
    captions: tuple[str, ...]
    weights: tuple[float, ...]
    background: tuple[str, ...] = (WHITE,)  # one colour, or more from top to bottom
    kind: str = ""  # of scene, where it is one that is asked for after training

    @property
    def plain(self) -> bool:
        """Whether it is one whole picture as it is, on white."""
        return len(self.layers) == 1 and self == Row(
            (Layer(self.layers[0].file),), self.captions, self.weights
        )


def singles_of(rows: Sequence[Row]) -> list[int]:
    """The places of rows that show one thing, large and in its own colours."""
    return [
        n
        for n, row in enumerate(rows)
        if len(row.layers) == 1 and row.layers[0].side >= LARGE and not row.layers[0].hue
    ]


class Pictures:
    """The rows of a data set, and each row's pixels and captions."""

    def __init__(self, source: Path, metadata: str = METADATA) -> None:
        self.source, self.metadata = source, metadata
        if not source.exists():
            raise BadFile(f"training data: no such folder or archive: {source}")
        self._archive = None if source.is_dir() else _archive(source)
        self.rows = [_row(line, n) for n, line in enumerate(self._metadata().splitlines(), 1)]
        if not self.rows:
            raise BadFile(f"training data: {metadata} in {source.name} has no rows")

    def _metadata(self) -> str:
        try:
            return self.read(self.metadata).decode("utf-8")
        except (KeyError, OSError, UnicodeDecodeError) as error:
            raise BadFile(
                f"training data: {self.source.name} has no readable {self.metadata}; each of its "
                """lines should be like {"file_name": "cat.png", "text": "a cat"}"""
            ) from error

    def read(self, name: str) -> bytes:
        """The content of a file beside the metadata."""
        if self._archive is not None:
            return self._archive.read(name)
        return (self.source / name).read_bytes()

    def text(self, name: str) -> str:
        """The text of a file beside the pictures."""
        return self.read(name).decode("utf-8")

    def caption(self, row: int, rng: random.Random) -> str:
        """One of a row's captions, drawn by their weights."""
        picked = self.rows[row]
        return rng.choices(picked.captions, picked.weights)[0]

    def pixels(self, row: int, size: int) -> Tensor:
        """A row's picture (3, size, size) in −1…1."""
        return self.paint(self.rows[row], size)

    def paint(self, entry: Row, size: int) -> Tensor:
        """Any row's picture (3, size, size) in −1…1."""
        return to_pixels(self.scene(entry, size))

    def scene(self, entry: Row, size: int) -> Image.Image:
        """Any row's picture: its layers, as squares, on its background."""
        scene = ground(entry.background, size)
        for layer in entry.layers:
            image = turned(square(self._image(layer.file), round(layer.side * size)), layer.hue)
            if layer.mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            scene.alpha_composite(image, (round(layer.left * size), round(layer.top * size)))
        return scene

    def paint_all(self, entries: Sequence[Row], size: int) -> Tensor:
        """Rows' pictures (N, 3, size, size), painted side by side on the processor's cores."""
        with ThreadPoolExecutor() as painters:
            return torch.stack(list(painters.map(lambda entry: self.paint(entry, size), entries)))

    def fingerprint(self) -> str:
        """A text that differs where rows or pictures do, as far as can be told unread."""
        if self._archive is not None:
            return str([(entry.filename, entry.CRC) for entry in self._archive.infolist()])
        files = sorted({layer.file for row in self.rows for layer in row.layers})
        known = [(self.source / name).stat() for name in files if (self.source / name).exists()]
        sizes = [(stat.st_size, stat.st_mtime_ns) for stat in known]
        return str([self._metadata(), *zip(files, sizes, strict=False)])

    def has(self, name: str) -> bool:
        """Whether there is a file of this name beside the pictures."""
        if self._archive is not None:
            return name in self._archive.namelist()
        return (self.source / name).exists()

    def _image(self, name: str) -> Image.Image:
        try:
            return Image.open(io.BytesIO(self.read(name))).convert("RGBA")
        except (KeyError, OSError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise BadFile(f"training data: cannot read the picture {name}") from error


class Kept:
    """The rows' pixels, (3, size, size) bytes each, painted when first asked for.

    They are kept as far as `room` bytes reach; others are painted again each time.
    """

    def __init__(self, pictures: Pictures, size: int, room: float) -> None:
        self.pictures, self.size = pictures, size
        self.most = int(room // (3 * size * size))
        self.known: dict[int, Tensor] = {}

    def __call__(self, rows: Sequence[int]) -> list[Tensor]:
        """The rows' pixels, 0 to 255."""
        missing = [row for row in dict.fromkeys(rows) if row not in self.known]
        with ThreadPoolExecutor() as painters:
            painted = dict(zip(missing, painters.map(self._paint, missing), strict=True))
        found = [self.known[row] if row in self.known else painted[row] for row in rows]
        for row in missing[: max(self.most - len(self.known), 0)]:
            self.known[row] = painted[row]
        return found

    def _paint(self, row: int) -> Tensor:
        return to_bytes(self.pictures.scene(self.pictures.rows[row], self.size))


def to_bytes(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) bytes."""
    values = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def centred(values: Tensor) -> Tensor:
    """Bytes as numbers in −1…1."""
    return values.float() / 127.5 - 1.0


def to_pixels(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) in −1…1."""
    return centred(to_bytes(image))


def square(image: Image.Image, size: int) -> Image.Image:
    """The middle of a picture, cut to a square and scaled."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)


def ground(colours: tuple[str, ...], size: int) -> Image.Image:
    """A plain square, or one that goes from colour to colour, top to bottom."""
    column = Image.new("RGBA", (1, len(colours)))
    for place, colour in enumerate(colours):
        column.putpixel((0, place), ImageColor.getcolor(colour, "RGBA"))
    if len(colours) == 1:
        return column.resize((size, size))
    # the colours are the middles of the stretched pixels: leave out what lies beyond them
    box = (0, 0.5, 1, len(colours) - 0.5)
    return column.resize((size, size), Image.Resampling.BILINEAR, box)


def turned(image: Image.Image, hue: float) -> Image.Image:
    """A picture with every hue moved on by a part of the whole turn: red by 1/3 is green."""
    if not hue:
        return image
    hues, saturation, value = image.convert("RGB").convert("HSV").split()
    hues = hues.point([(level + round(hue * 256)) % 256 for level in range(256)])
    colours = Image.merge("HSV", (hues, saturation, value)).convert("RGB")
    colours.putalpha(image.getchannel("A"))
    return colours


def _archive(source: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise BadFile(
            f"training data: {source.name} is neither a folder nor a zip archive"
        ) from error


def _row(line: str, number: int) -> Row:
    """One line of the metadata. Raises BadFile with the line's number."""
    where = f"training data: {METADATA} line {number}"
    try:
        entry = json.loads(line)
        file, text = entry["file_name"], entry["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{where}: needs a JSON object with 'file_name' and 'text'") from error
    captions = (text,) if isinstance(text, str) else tuple(text)
    weights = tuple(entry.get("weights", [1.0] * len(captions)))
    if not captions or len(weights) != len(captions):
        raise BadFile(f"{where}: {len(captions)} captions but {len(weights)} weights")
    layers = tuple(_layer(layer, where) for layer in entry.get("layers", [{"file_name": file}]))
    behind = entry.get("background", WHITE)
    colours = (behind.lower(),) if isinstance(behind, str) else tuple(behind)
    if not colours or not all(map(_is_colour, colours)):
        raise BadFile(f"{where}: background {behind!r} is no colour such as '{WHITE}'")
    return Row(layers, captions, weights, colours, str(entry.get("kind", "")))


def _layer(entry: object, where: str) -> Layer:
    """A layer of a row, within its scene. Raises BadFile."""
    try:
        fields = dict(entry)  # type: ignore[call-overload]
        file, mirrored = str(fields.pop("file_name")), bool(fields.pop("mirrored", False))
        places = {name: float(value) for name, value in fields.items()}
        layer = Layer(file, mirrored=mirrored, **places)
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(
            f"{where}: a layer needs 'file_name'; it may have left, top, side, hue, mirrored"
        ) from error
    parts = PurePosixPath(file).parts
    if not parts or ".." in parts or PurePosixPath(file).is_absolute():
        raise BadFile(f"{where}: file_name '{file}' leads out of the data set")
    end = max(layer.left, layer.top) + layer.side
    if not (layer.side > 0 and min(layer.left, layer.top) >= 0 and end <= 1 + 1e-6):
        raise BadFile(f"{where}: '{file}' reaches beyond the picture: places are from 0 to 1")
    return layer


def _is_colour(value: object) -> bool:
    try:
        return bool(ImageColor.getrgb(str(value)))
    except ValueError:
        return False


def indices(count: int, start: int, length: int, seed: int) -> list[int]:
    """Places start … start+length of an endless list: the rows in a new order each round.

    It depends on nothing but its arguments, so a resumed run sees what an uninterrupted one sees.
    """
    picked: list[int] = []
    while len(picked) < length:
        turn, place = divmod(start + len(picked), count)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
        order = torch.randperm(count, generator=generator)
        picked += order[place : place + length - len(picked)].tolist()
    return picked


def cut_out(pixels: Tensor, side: int, rng: random.Random) -> Tensor:
    """A random square (3, side, side) of pixels (3, H, W); the whole where it is no larger."""
    height, width = pixels.shape[-2:]
    top = rng.randint(0, max(height - side, 0))
    left = rng.randint(0, max(width - side, 0))
    return pixels[:, top : top + side, left : left + side]


def drop_captions(captions: list[str], rate: float, rng: random.Random) -> list[str]:
    """The captions, each with a chance of `rate` replaced by the empty one.

    So one network learns both what guidance needs (Ho & Salimans 2022, Algorithm 1).
    """
    return ["" if rng.random() < rate else caption for caption in captions]
