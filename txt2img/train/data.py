"""Training data: a folder or zip archive of captioned pictures → tensors.

The Hub's imagefolder convention: `metadata.jsonl` has a row a picture with `file_name` and `text`;
or kohya's: the caption of x.png is in x.txt.
`text` may be a list of captions of the same picture, `weights` says how often each is drawn, and
`background` gives transparent pictures a colour (white when absent), or two from top to bottom.
`layers` puts several pictures on one: each has a `file_name`, the `left`, `top` and `side` of its
square as parts of the whole's, a `hue` that its colours are turned by, as part of a turn, and
`mirrored` where left and right change places.
"""

import io
import json
import os
import random
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock

import torch
from PIL import Image, ImageColor
from torch import Tensor

from txt2img.errors import BadFile
from txt2img.images.image_file import pillow_errors
from txt2img.images.metadata.parsed import json_object
from txt2img.system.files import entries, exists, open_regular, parse_json, read_bounded
from txt2img.system.text import shown

METADATA = "metadata.jsonl"
HELD_OUT_FILE = "heldout.jsonl"  # scenes kept from training, to test composition with
WORDS_FILE = "words.json"  # word → things that it names, if the data set has such a table
WHITE = "#ffffff"
CAPTIONS = (".txt", ".caption")  # beside a picture
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif")
TEXT_MAX = 2**27  # bytes of the metadata: a row takes some hundred
LINE_MAX = 2**20  # characters of one row
PICTURE_MAX = 2**26  # bytes of one picture's file
PIXELS_MAX = 2**27  # of one picture, which takes 512 MiB when it is decoded
WEIGHT_MAX = 1e9  # of a caption
LARGE = 2**23  # pixels, from which on one picture at a time is decoded
# What zipfile raises for archives that are damaged, encrypted or packed in a way that it lacks.
BROKEN = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Layer:
    """A picture placed in a scene: lengths in parts of the scene's side, hue of a full turn."""

    file: str
    left: float = 0.0
    top: float = 0.0
    side: float = 1.0
    hue: float = 0.0
    mirrored: bool = False


@dataclass(frozen=True)
class Row:
    """One training sample: layers, captions with their weights, background."""

    layers: tuple[Layer, ...]
    captions: tuple[str, ...]
    weights: tuple[float, ...]
    background: tuple[str, ...] = (WHITE,)  # one colour, or more from top to bottom
    kind: str = ""  # of scene, for held-out scenes

    @property
    def plain(self) -> bool:
        """Whether it is one unmodified picture on white."""
        return len(self.layers) == 1 and self == Row(
            (Layer(self.layers[0].file),), self.captions, self.weights
        )


class Pictures:
    """The rows of a data set, and each row's pixels and captions."""

    def __init__(self, source: Path, metadata: str = METADATA) -> None:
        self.source, self.metadata = source, metadata
        if not exists(source):
            raise BadFile(f"training data: no such folder or archive: {shown(source, 200)}")
        self._archive = None if os.path.isdir(source) else _archive(source)
        self._one_large = Lock()
        self.rows = [_row(line, n) for n, line in enumerate(self._metadata().splitlines(), 1)]
        if not self.rows:
            raise BadFile(f"training data: {metadata} in {source.name} has no rows")

    def _metadata(self) -> str:
        if not self.has(self.metadata) and (lines := self._captions_beside()):
            return "\n".join(lines)
        if not self.has(self.metadata):
            raise BadFile(
                f"training data: {shown(self.source.name)} has no {self.metadata}; each of its "
                """lines should be like {"file_name": "cat.png", "text": "a cat"}"""
            )
        return self.text(self.metadata)

    def _captions_beside(self) -> list[str]:
        """Rows of a folder or archive whose pictures have their captions beside them, as kohya's.

        That of x.png is in x.txt or x.caption. BadFile for a picture without one.
        """
        names = sorted(self._names())
        texts = {name for name in names if name.endswith(CAPTIONS)}
        if self.metadata != METADATA or not texts:
            return []
        lines = []
        for name in names:
            if not name.lower().endswith(PICTURES) or name.startswith("."):
                continue
            stem = os.path.splitext(name)[0]
            beside = next((stem + end for end in CAPTIONS if stem + end in texts), None)
            if beside is None:
                raise BadFile(f"training data: {shown(name)} has no caption; write {stem}.txt")
            row = {"file_name": name, "text": " ".join(self.text(beside).split())}
            lines.append(json.dumps(row))
        return lines

    def _names(self) -> list[str]:
        """The names of the data set's files, not those in folders of a folder."""
        if self._archive is not None:
            return self._archive.namelist()
        return [path.name for path in entries(self.source)] if self.source.is_dir() else []

    def read(self, name: str, most: int = PICTURE_MAX) -> bytes:
        """The content of one of the data set's files, of at most so many bytes. BadFile."""
        if self._archive is None:
            return read_bounded(self.source / name, most)
        where = f"training data: {shown(name)} in {shown(self.source.name)}"
        try:
            with self._archive.open(name) as file:
                content = file.read(most + 1)
        except KeyError as error:
            raise BadFile(f"{where} is missing") from error
        except BROKEN as error:
            raise BadFile(f"{where} cannot be read: {error}") from error
        if len(content) > most:
            raise BadFile(f"{where} is larger than {most >> 20} MiB")
        return content

    def text(self, name: str) -> str:
        """The text of one of the data set's files. BadFile."""
        try:
            return self.read(name, TEXT_MAX).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadFile(f"training data: {shown(name)} is not UTF-8 text") from error

    def caption(self, row: int, rng: random.Random) -> str:
        """Sample one of a row's captions by their weights."""
        picked = self.rows[row]
        return rng.choices(picked.captions, picked.weights)[0]

    def pixels(self, row: int, size: int) -> Tensor:
        """Render a row by index: (3, size, size) in −1…1."""
        return self.paint(self.rows[row], size)

    def paint(self, entry: Row, size: int) -> Tensor:
        """Render any row: (3, size, size) in −1…1."""
        return to_pixels(self.scene(entry, size))

    def scene(self, entry: Row, size: int) -> Image.Image:
        """Compose any row: its layers, as squares, on its background."""
        return self._with_layers(background_image(entry.background, size), entry)

    def alpha(self, entry: Row, size: int) -> Tensor:
        """The opacity of any row's layers together: (1, size, size) in 0…1."""
        scene = self._with_layers(Image.new("RGBA", (size, size)), entry)
        data = bytearray(scene.getchannel("A").tobytes())
        return torch.frombuffer(data, dtype=torch.uint8).view(1, size, size) / 255.0

    def _with_layers(self, scene: Image.Image, entry: Row) -> Image.Image:
        """Compose any row's layers, as squares, on a scene, in place."""
        size = scene.width
        for layer in entry.layers:
            image = rotate_hue(self._square(layer.file, round(layer.side * size)), layer.hue)
            if layer.mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            scene.alpha_composite(image, (round(layer.left * size), round(layer.top * size)))
        return scene

    def paint_all(self, entries: Sequence[Row], size: int) -> Tensor:
        """Render rows in parallel: (N, 3, size, size)."""
        with ThreadPoolExecutor() as painters:
            return torch.stack(list(painters.map(lambda entry: self.paint(entry, size), entries)))

    def fingerprint(self) -> str:
        """A text that changes with rows or pictures, as far as sizes and times show."""
        if self._archive is not None:
            return str([(entry.filename, entry.CRC) for entry in self._archive.infolist()])
        files = sorted({layer.file for row in self.rows for layer in row.layers})
        known = [(self.source / name).stat() for name in files if exists(self.source / name)]
        sizes = [(stat.st_size, stat.st_mtime_ns) for stat in known]
        return str([self._metadata(), *zip(files, sizes, strict=False)])

    def has(self, name: str) -> bool:
        """Whether the data set has a file of this name."""
        if self._archive is not None:
            return name in self._archive.NameToInfo
        return exists(self.source / name)

    def _square(self, name: str, side: int) -> Image.Image:
        """A picture's central square, scaled to `side` pixels. BadFile."""
        content, where = self.read(name), f"training data: {shown(name)}"
        try:
            with pillow_errors(), Image.open(io.BytesIO(content)) as image:
                pixels = image.width * image.height
                if pixels > PIXELS_MAX:
                    size = f"{image.width}x{image.height}"
                    raise BadFile(f"{where} has {size} pixels; at most {PIXELS_MAX:,} in all")
                with self._one_large if pixels > LARGE else nullcontext():
                    return center_crop(image.convert("RGBA"), side)
        except ValueError as error:
            raise BadFile(f"{where} is no whole picture: {error}") from error


class ImageCache:
    """Cache of rendered rows, (3, size, size) bytes each, rendered on first use.

    It holds at most `room` bytes; further rows are rendered again each time.
    """

    def __init__(self, pictures: Pictures, size: int, room: float) -> None:
        self.pictures, self.size = pictures, size
        self.most = int(room // (3 * size * size))
        self.known: dict[int, Tensor] = {}

    def __call__(self, rows: Sequence[int]) -> list[Tensor]:
        """The rows' pixels, 0 to 255, rendering what is missing."""
        missing = [row for row in dict.fromkeys(rows) if row not in self.known]
        with ThreadPoolExecutor() as painters:
            new = dict(zip(missing, painters.map(self._paint, missing), strict=True))
        pixels = [self.known[row] if row in self.known else new[row] for row in rows]
        for row in missing[: max(self.most - len(self.known), 0)]:
            self.known[row] = new[row]
        return pixels

    def _paint(self, row: int) -> Tensor:
        return to_bytes(self.pictures.scene(self.pictures.rows[row], self.size))


def to_bytes(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) bytes."""
    values = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return values.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def to_unit_range(values: Tensor) -> Tensor:
    """Map bytes to −1…1."""
    return values.float() / 127.5 - 1.0


def to_pixels(image: Image.Image) -> Tensor:
    """A picture as (3, H, W) in −1…1."""
    return to_unit_range(to_bytes(image))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Crop the central square of a picture and scale it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)


def background_image(colours: tuple[str, ...], size: int) -> Image.Image:
    """A square of one colour, or a vertical gradient of several."""
    column = Image.new("RGBA", (1, len(colours)))
    for place, colour in enumerate(colours):
        column.putpixel((0, place), ImageColor.getcolor(colour, "RGBA"))
    if len(colours) == 1:
        return column.resize((size, size))
    # colours lie at the centres of the stretched pixels: leave out what is beyond them
    box = (0, 0.5, 1, len(colours) - 0.5)
    return column.resize((size, size), Image.Resampling.BILINEAR, box)


def rotate_hue(image: Image.Image, hue: float) -> Image.Image:
    """Rotate all hues by a fraction of a full turn: red by 1/3 is green."""
    if not hue:
        return image
    hues, saturation, value = image.convert("RGB").convert("HSV").split()
    hues = hues.point([(level + round(hue * 256)) % 256 for level in range(256)])
    colours = Image.merge("HSV", (hues, saturation, value)).convert("RGB")
    colours.putalpha(image.getchannel("A"))
    return colours


def _archive(source: Path) -> zipfile.ZipFile:
    open_regular(source).close()  # or BadFile: a pipe would wait for its writer
    try:
        return zipfile.ZipFile(source)
    except BROKEN as error:
        raise BadFile(
            f"training data: {shown(source.name)} is neither a folder nor a whole zip archive"
        ) from error


def _row(line: str, number: int) -> Row:
    """Parse one line of the metadata. Raises BadFile with the line's number."""
    where = f"training data: {METADATA} line {number}"
    try:
        if len(line) > LINE_MAX:
            raise ValueError(f"it has more than {LINE_MAX:,} characters")
        entry = json_object(parse_json(line))
        file, captions = str(entry["file_name"]), _texts(entry["text"], "text")
        weights = _list(entry.get("weights", [1.0] * len(captions)), "weights")
        layers = _list(entry.get("layers", [{"file_name": file}]), "layers")
        named = _texts(entry.get("background", WHITE), "background")
        colours = tuple(colour.lower() for colour in named)
    except KeyError as error:
        raise BadFile(f"{where}: needs a JSON object with 'file_name' and 'text'") from error
    except ValueError as error:
        needs = "needs a JSON object with 'file_name' and 'text'"
        raise BadFile(f"{where}: {needs}: {error}") from error
    if len(weights) != len(captions):
        raise BadFile(f"{where}: {len(captions)} captions but {len(weights)} weights")
    numbers = [one for one in weights if isinstance(one, int | float) and 0 <= one < WEIGHT_MAX]
    if len(numbers) < len(weights) or not any(numbers):
        raise BadFile(f"{where}: weights {shown(weights)}; they must be numbers, one above 0")
    if not all(map(_is_colour, colours)):
        raise BadFile(f"{where}: background {shown(colours)} is no colour such as '{WHITE}'")
    placed = tuple(_layer(layer, where) for layer in layers)
    return Row(placed, captions, tuple(numbers), colours, str(entry.get("kind", "")))


def _texts(value: object, name: str) -> tuple[str, ...]:
    """A text, or a list of at least one. ValueError."""
    texts = [value] if isinstance(value, str) else _list(value, name)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} is {shown(value)}, not a text or a list of texts")
    return tuple(map(str, texts))


def _list(value: object, name: str) -> list[object]:
    """A list. ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{name} is {shown(value)}, not a list")
    return value


def _layer(entry: object, where: str) -> Layer:
    """Parse one layer of a row. Raises BadFile unless it lies within its scene."""
    try:
        fields = dict(entry)  # type: ignore[call-overload]
        file, mirrored = str(fields.pop("file_name")), bool(fields.pop("mirrored", False))
        places = {name: float(value) for name, value in fields.items()}
        layer = Layer(file, mirrored=mirrored, **places)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadFile(
            f"{where}: a layer needs 'file_name'; it may have left, top, side, hue, mirrored"
        ) from error
    parts = PurePosixPath(file).parts
    if not parts or ".." in parts or PurePosixPath(file).is_absolute():
        raise BadFile(f"{where}: file_name {shown(file)} leads out of the data set")
    end = max(layer.left, layer.top) + layer.side
    if not (layer.side > 0 and min(layer.left, layer.top) >= 0 and end <= 1 + 1e-6):
        raise BadFile(f"{where}: {shown(file)} reaches beyond the picture: places are from 0 to 1")
    return layer


def _is_colour(value: object) -> bool:
    try:
        return bool(ImageColor.getrgb(str(value)))
    except (ValueError, OverflowError):
        return False


def shuffled_indices(count: int, start: int, length: int, seed: int) -> list[int]:
    """Entries start … start + length of an endless list that shuffles all rows anew each epoch.

    It depends on its arguments alone, so a resumed run sees what an uninterrupted one would.
    """
    picked: list[int] = []
    while len(picked) < length:
        epoch, place = divmod(start + len(picked), count)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(count, generator=generator)
        picked += order[place : place + length - len(picked)].tolist()
    return picked


def random_crop(pixels: Tensor, side: int, rng: random.Random) -> Tensor:
    """A random crop (3, side, side) of pixels (3, H, W); all of them if they are no larger."""
    height, width = pixels.shape[-2:]
    top = rng.randint(0, max(height - side, 0))
    left = rng.randint(0, max(width - side, 0))
    return pixels[:, top : top + side, left : left + side]


def drop_captions(captions: list[str], rate: float, rng: random.Random) -> list[str]:
    """Caption dropout: each caption becomes empty with probability `rate`.

    So one network learns both predictions of guidance (Ho & Salimans 2022, Algorithm 1).
    """
    return ["" if rng.random() < rate else caption for caption in captions]
