"""Pictures and captions: a folder or a zip archive → tensors.

The Hub's imagefolder convention: `metadata.jsonl` has a row a picture with `file_name` and `text`.
`text` may be a list of captions of the same picture, `weights` says how often each is drawn, and
`background` gives transparent pictures a colour (white when absent).
"""

import io
import json
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from txt2img.errors import BadFile

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Row:
    """One training picture: where it is, what it may be called, what is behind it."""

    file: str
    captions: tuple[str, ...]
    weights: tuple[float, ...]
    background: str = "#ffffff"


class Pictures:
    """The rows of a data set, and each row's pixels and captions."""

    def __init__(self, source: Path) -> None:
        self.source = source
        if not source.exists():
            raise BadFile(f"training data: no such folder or archive: {source}")
        self._archive = None if source.is_dir() else _archive(source)
        self.rows = [_row(line, n) for n, line in enumerate(self._metadata().splitlines(), 1)]
        if not self.rows:
            raise BadFile(f"training data: {METADATA} in {source.name} has no rows")

    def _metadata(self) -> str:
        try:
            return self._bytes(METADATA).decode("utf-8")
        except (KeyError, OSError, UnicodeDecodeError) as error:
            raise BadFile(
                f"training data: {self.source.name} has no readable {METADATA}; each of its lines "
                """should be like {"file_name": "cat.png", "text": "a cat"}"""
            ) from error

    def _bytes(self, name: str) -> bytes:
        if self._archive is not None:
            return self._archive.read(name)
        return (self.source / name).read_bytes()

    def caption(self, row: int, rng: random.Random) -> str:
        """One of a row's captions, drawn by their weights."""
        picked = self.rows[row]
        return rng.choices(picked.captions, picked.weights)[0]

    def pixels(self, row: int, size: int) -> Tensor:
        """A row's picture (3, size, size) in −1…1: cut to a square, scaled, on its background."""
        entry = self.rows[row]
        try:
            image = Image.open(io.BytesIO(self._bytes(entry.file))).convert("RGBA")
        except (KeyError, OSError, UnidentifiedImageError, zipfile.BadZipFile) as error:
            raise BadFile(f"training data: cannot read the picture {entry.file}") from error
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        if side != size:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        behind = Image.new("RGBA", image.size, entry.background)
        flat = Image.alpha_composite(behind, image).convert("RGB")
        data = torch.frombuffer(bytearray(flat.tobytes()), dtype=torch.uint8)
        return data.view(size, size, 3).permute(2, 0, 1).float() / 127.5 - 1.0


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
    parts = PurePosixPath(str(file)).parts
    if not parts or ".." in parts or PurePosixPath(file).is_absolute():
        raise BadFile(f"{where}: file_name '{file}' leads out of the data set")
    captions = (text,) if isinstance(text, str) else tuple(text)
    weights = tuple(entry.get("weights", [1.0] * len(captions)))
    if not captions or len(weights) != len(captions):
        raise BadFile(f"{where}: {len(captions)} captions but {len(weights)} weights")
    return Row(file, captions, weights, entry.get("background", "#ffffff"))


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
