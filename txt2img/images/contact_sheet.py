"""Contact sheets of sweeps: each picture with its settings, and a CSV table of the same."""

import csv
import json
import os
from collections.abc import Sequence
from io import StringIO
from itertools import count
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from txt2img.images import image_file, output
from txt2img.images.formats import PNG, Format
from txt2img.images.output import Output, with_suffix
from txt2img.request import Request
from txt2img.request.sweep import NONE, Axis
from txt2img.system.text import escape

SIDE_MAX = 16_383  # pixels: WebP's limit, the lowest of all formats
SHEET = "txt2img-sheet"  # the key of a sheet's text
CELL_MAX = 512  # pixels
GAP = 8  # pixels
FONT = 13  # pixels
LINE = 16  # pixels
PAPER, INK = (255, 255, 255), (0, 0, 0)
Cell = tuple[Path, Request]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
ALWAYS = ("prompt", "negative", "seed", "width", "height", "steps", "cfg", "sampler", "schedule")


def write(cells: Sequence[Cell], axes: Sequence[Axis], target: Output, columns: int) -> list[Path]:
    """Write sheet.png and sheet.csv next to the pictures; gives their paths. BadOutput, OSError."""
    if not cells:
        return []
    return [
        _publish(draw(cells, axes, columns, target.format), target, f"sheet{target.format.suffix}"),
        _publish(table(cells, axes), target, "sheet.csv"),
    ]


def table(cells: Sequence[Cell], axes: Sequence[Axis]) -> bytes:
    """A CSV line for each picture: its path, the swept fields and the other main ones."""
    fields = list(dict.fromkeys([*(axis.field for axis in axes), *ALWAYS, "cfg_rescale", "eta"]))
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["path", *fields])
    for path, request in cells:
        values = [_plain(getattr(request, field)) for field in fields]
        writer.writerow([path.name, *values])
    return text.getvalue().encode("utf-8")


def draw(cells: Sequence[Cell], axes: Sequence[Axis], columns: int, format: Format = PNG) -> bytes:
    """The sheet as a picture file: thumbnails with captions, and the sweep in its text."""
    rows = -(-len(cells) // columns)
    fields = [axis.field for axis in axes]
    if len({request.prompt for _, request in cells}) > 1 and "prompt" not in fields:
        fields.append("prompt")
    if len({request.seed for _, request in cells}) > 1 and "seed" not in fields:
        fields.append("seed")
    caption = LINE * len(fields)
    limit = SIDE_MAX // columns - GAP, SIDE_MAX // rows - GAP - caption
    width = min(CELL_MAX, limit[0], max(request.width or 1 for _, request in cells))
    height = min(CELL_MAX, limit[1], max(request.height or 1 for _, request in cells))
    width, height = max(width, 16), max(height, 16)
    across, down = width + GAP, height + caption + GAP
    sheet = Image.new("RGB", (columns * across + GAP, rows * down + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for i, (path, request) in enumerate(cells):
        x, y = GAP + i % columns * across, GAP + i // columns * down
        for line, field in enumerate(fields):
            label = f"{field.replace('_', ' ')} {_label(getattr(request, field))}"
            pen.text((x, y + line * LINE), _truncated(label, width, font), fill=INK, font=font)
        with Image.open(path) as picture:
            picture.thumbnail((width, height))
            sheet.paste(picture.convert("RGB"), (x, y + caption))
    swept = {axis.field: axis.values for axis in axes}
    return image_file.encode_texts(
        sheet, {SHEET: json.dumps({"swept": swept, "columns": columns})}, format
    )


def _plain(value: object) -> object:
    """A field's value in a table: None is empty, LoRAs are as on a command line."""
    if isinstance(value, tuple):
        return ",".join(f"{lora.name}:{lora.unet:g}" for lora in value)
    return "" if value is None else value


def _label(value: object) -> str:
    plain = NONE if value == () else _plain(value)
    return f"{plain:g}" if isinstance(plain, float) else escape(str(plain))


def _truncated(text: str, width: int, font: Font) -> str:
    """A text cut to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    text = text[: width // 2]  # no letter is narrower: a long prompt costs no more
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _publish(data: bytes, target: Output, name: str) -> Path:
    """Write a file under a free name, unless the same one exists."""
    if target.overwrite:
        output.write_file(data, target.folder / name, overwrite=True)
        return target.folder / name
    for number in count(1):
        path = target.folder / with_suffix(name, number)
        if not os.path.lexists(path):
            break
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return path
    return target.write_beside(data, name)
