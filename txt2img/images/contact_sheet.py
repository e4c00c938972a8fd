"""Contact sheets of sweeps: each picture with its settings, and a CSV table of the same."""

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Self

from PIL import Image, ImageDraw, ImageFont

from txt2img.images import image_file, output
from txt2img.images.formats import PNG, SVG, Format
from txt2img.images.output import Output, with_suffix
from txt2img.request import Request
from txt2img.request.adapters import Lora
from txt2img.request.sweep import NONE, Axis, Sweep
from txt2img.system.text import escape

SIDE_MAX = 16_383  # pixels: WebP's limit, the lowest of all formats
SHEET = "txt2img-sheet"  # the key of a sheet's text
CELL_MAX = 512  # pixels
MARGIN_MAX = 200  # pixels
GAP = 8  # pixels
FONT = 13  # pixels
LINE = 16  # pixels
PAPER, INK = (255, 255, 255), (0, 0, 0)
Cell = tuple[Path, Request]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
ALWAYS = ("prompt", "negative", "seed", "width", "height", "steps", "cfg", "sampler", "schedule")


def write(cells: Sequence[Cell], sweep: Sweep, target: Output) -> list[Path]:
    """Write sheet.png and sheet.csv next to the pictures; gives their paths. BadOutput, OSError.

    Of SVG files, which have no pixels, only the table.
    """
    if not cells:
        return []
    paths = []
    if target.format.name != SVG.name:
        sheet = draw(cells, sweep, target.format)
        paths.append(_publish(sheet, target, f"sheet{target.format.suffix}"))
    return [*paths, _publish(table(cells, sweep.axes), target, "sheet.csv")]


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


def draw(cells: Sequence[Cell], sweep: Sweep, format: Format = PNG) -> bytes:
    """The sheet as a picture file: thumbnails with captions, and the sweep in its text.

    A grid's columns and rows are its first two axes; all else that differs, such as seeds, has a
    block of its own. A sweep in step is a list, each picture under its values.
    """
    blocks = _list(cells, sweep) if sweep.in_step else _grid(cells, sweep.axes)
    sheet = _Layout.of(blocks, cells).draw(blocks)
    swept = {axis.field: axis.values for axis in sweep.axes}
    text = json.dumps({"swept": swept, "columns": sweep.columns, "blocks": len(blocks)})
    return image_file.encode_texts(sheet, {SHEET: text}, format)


@dataclass
class _Block:
    """A part of a sheet: pictures by column and row, and the labels around them."""

    title: str
    columns: list[str]
    rows: list[str]
    pictures: dict[tuple[int, int], Path] = field(default_factory=dict)


def _grid(cells: Sequence[Cell], axes: Sequence[Axis]) -> list[_Block]:
    """The blocks of a grid: one for each combination of what is neither column nor row."""
    across, down, further_axes = axes[0].field, axes[1].field if len(axes) > 1 else "", axes[2:]
    others = [axis.field for axis in further_axes]
    for name in ("prompt", "seed"):
        if name not in (across, down, *others) and _differs(cells, name):
            others.append(name)
    columns = list(dict.fromkeys(_caption(request, across) for _, request in cells))
    rows = list(dict.fromkeys(_caption(request, down) for _, request in cells))
    blocks: dict[str, _Block] = {}
    for path, request in cells:
        title = ", ".join(_caption(request, name) for name in others)
        block = blocks.setdefault(title, _Block(title, columns, rows))
        place = columns.index(_caption(request, across)), rows.index(_caption(request, down))
        block.pictures[place] = path
    return list(blocks.values())


def _list(cells: Sequence[Cell], sweep: Sweep) -> list[_Block]:
    """The blocks of a sweep in step: one for each row of pictures, under their values."""
    fields = [axis.field for axis in sweep.axes]
    fields += [name for name in ("prompt", "seed") if name not in fields and _differs(cells, name)]
    blocks = []
    for start in range(0, len(cells), sweep.columns):
        part = cells[start : start + sweep.columns]
        captions = ["\n".join(_caption(request, name) for name in fields) for _, request in part]
        pictures = {(i, 0): path for i, (path, _) in enumerate(part)}
        blocks.append(_Block("", captions, [""], pictures))
    return blocks


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels of a sheet's parts."""

    width: int  # of a thumbnail
    height: int
    margin: int  # left of the pictures, for the rows' labels
    title: int  # height of a block's title
    caption: int  # height of the columns' labels
    across: int  # blocks beside each other
    font: Font

    @classmethod
    def of(cls, blocks: Sequence[_Block], cells: Sequence[Cell]) -> Self:
        """The layout in which all blocks fit into the largest picture that formats allow."""
        font, first = ImageFont.load_default(FONT), blocks[0]
        margin = min(round(max(font.getlength(row) for row in first.rows)), MARGIN_MAX)
        margin += GAP if margin else 0
        title = LINE if any(block.title for block in blocks) else 0
        caption = LINE * max(text.count("\n") + 1 for text in first.columns)
        columns, rows = len(first.columns), len(first.rows)
        width = min(CELL_MAX, max(request.width or 1 for _, request in cells))
        height = min(CELL_MAX, max(request.height or 1 for _, request in cells))
        wide, high = columns * (width + GAP) + margin, rows * (height + GAP) + caption + title
        across = 1 if margin == 0 and not title else math.ceil(math.sqrt(len(blocks) * high / wide))
        across = min(across, len(blocks))
        down = -(-len(blocks) // across)
        # thumbnails shrink until all fit
        width = min(width, (SIDE_MAX // across - margin - GAP) // columns - GAP)
        height = min(height, (SIDE_MAX // down - title - caption - GAP) // rows - GAP)
        return cls(max(width, 4), max(height, 4), margin, title, caption, across, font)

    def draw(self, blocks: Sequence[_Block]) -> Image.Image:
        """Draw all blocks on one sheet."""
        first = blocks[0]
        wide = self.margin + len(first.columns) * (self.width + GAP)
        high = self.title + self.caption + len(first.rows) * (self.height + GAP)
        down = -(-len(blocks) // self.across)
        sheet = Image.new("RGB", (self.across * wide + GAP, down * high + GAP), PAPER)
        for i, block in enumerate(blocks):
            self._draw_block(
                sheet, block, GAP + i % self.across * wide, GAP + i // self.across * high
            )
        return sheet

    def _draw_block(self, sheet: Image.Image, block: _Block, left: int, top: int) -> None:
        """Draw one block with its left upper corner there."""
        pen, (x0, y0) = ImageDraw.Draw(sheet), (left + self.margin, top + self.title + self.caption)

        def write(x: int, y: int, text: str, width: int) -> None:
            pen.text((x, y), _truncated(text, width, self.font), fill=INK, font=self.font)

        write(left, top, block.title, self.margin + len(block.columns) * (self.width + GAP) - GAP)
        for i, text in enumerate(block.columns):
            for line, label in enumerate(text.split("\n")):
                y = y0 - self.caption + line * LINE
                write(x0 + i * (self.width + GAP), y, label, self.width)
        for j, text in enumerate(block.rows):
            y = y0 + j * (self.height + GAP) + max(self.height - LINE, 0) // 2
            write(left, y, text, self.margin - GAP)
        for (i, j), path in block.pictures.items():
            with Image.open(path) as picture:
                picture.thumbnail((self.width, self.height))
                at = x0 + i * (self.width + GAP), y0 + j * (self.height + GAP)
                sheet.paste(picture.convert("RGB"), at)


def _differs(cells: Sequence[Cell], name: str) -> bool:
    """Whether pictures differ in a field."""
    return len({getattr(request, name) for _, request in cells}) > 1


def _caption(request: Request, name: str) -> str:
    """A field's name and value; empty for no field."""
    return f"{name.replace('_', ' ')} {_label(getattr(request, name))}" if name else ""


def _plain(value: object) -> object:
    """A field's value in a table: None is empty, LoRAs are as on a command line."""
    if isinstance(value, tuple):
        texts = (f"{x.name}:{x.unet:g}" if isinstance(x, Lora) else str(x) for x in value)
        return ",".join(texts)
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
