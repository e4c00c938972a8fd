"""Terminal graphics: the kitty and iTerm2 protocols, sixels, and coloured half blocks.

Each text leaves the cursor at the beginning of the line below the picture, whatever the terminal
itself does with it.
"""

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby, product

from PIL import Image

Cells = tuple[int, int]  # columns, rows
BICUBIC = Image.Resampling.BICUBIC
CHUNK = 4096  # bytes of a kitty command's payload
COLOURS = 256  # of a sixel picture's palette
CUBE = (0, 95, 135, 175, 215, 255)  # levels of xterm's colour cube; its greys are 10 apart
UPPER_HALF = "▀"
LETTERS = bytes((bits + 63) % 256 for bits in range(256))  # of sixels, by their six bits


def fit(size: tuple[int, int], limits: Cells, cell: tuple[int, int]) -> Cells:
    """Columns and rows of the largest undistorted picture within limits; `cell`: a cell's size."""
    width, height = size[0] / cell[0], size[1] / cell[1]
    scale = min(limits[0] / width, limits[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def kitty(picture: Image.Image, cells: Cells, number: int) -> str:
    """A picture in kitty's graphics protocol; it replaces one of the same number."""
    payload = base64.b64encode(_png(picture)).decode()
    parts = [payload[i : i + CHUNK] for i in range(0, len(payload), CHUNK)]
    first = f"a=T,f=100,i={number},p=1,q=2,C=1,c={cells[0]},r={cells[1]},"
    commands = [
        f"\x1b_G{'' if i else first}m={int(i < len(parts) - 1)};{part}\x1b\\"
        for i, part in enumerate(parts)
    ]
    return _over("".join(commands), cells[1])


def erase_kitty(number: int) -> str:
    """The sequence that deletes a kitty picture."""
    return f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\"


def iterm(picture: Image.Image, cells: Cells) -> str:
    """A picture in iTerm2's inline image protocol, which WezTerm and mintty know too."""
    data = _png(picture)
    size = f"size={len(data)};width={cells[0]};height={cells[1]}"
    how = f"inline=1;{size};preserveAspectRatio=0;doNotMoveCursor=1"
    return _over(f"\x1b]1337;File={how}:{base64.b64encode(data).decode()}\x07", cells[1])


def sixel(picture: Image.Image, cells: Cells) -> str:
    """A picture as sixels: strips of six rows, in each strip one colour's dots after another's.

    DEC STD 070, chapter 9; the raster attributes hold the picture's size.
    """
    paletted = picture.convert("RGB").quantize(COLOURS, Image.Quantize.FASTOCTREE)
    palette = paletted.getpalette() or []
    pixels = paletted.tobytes()
    registers = "".join(
        f"#{i};2;" + ";".join(str(round(level / 2.55)) for level in palette[3 * i : 3 * i + 3])
        for i in sorted(set(pixels))
    )
    width, height = picture.size
    strips = "-".join(_strips(pixels, width))
    return _over(f'\x1bP0;1q"1;1;{width};{height}{registers}{strips}\x1b\\', cells[1])


def _strips(pixels: bytes, width: int) -> Iterator[str]:
    """Run-length encoded sixels of every six rows of palette indices."""
    rows = [pixels[i : i + width] for i in range(0, len(pixels), width)]
    masks = {colour: bytes(colour) + b"\1" + bytes(255 - colour) for colour in set(pixels)}
    for top in range(0, len(rows), 6):
        strip = rows[top : top + 6]
        colours = sorted(set(b"".join(strip)))
        yield "$".join(
            f"#{colour}{_run_lengths(_dots(strip, masks[colour]))}" for colour in colours
        )


def _dots(strip: list[bytes], mask: bytes) -> bytes:
    """Up to six rows as a row of six-bit values, a bit set where `mask` maps the colour to 1.

    A row is shifted as one large integer: a loop over its pixels would take ten times as long.
    """
    bits = 0
    for y, row in enumerate(strip):
        bits |= int.from_bytes(row.translate(mask), "big") << y
    return bits.to_bytes(len(strip[0]), "big")


def _run_lengths(dots: bytes) -> str:
    """A row of sixels; `!n` repeats a letter n times where that is shorter."""
    letters = dots.translate(LETTERS).decode("ascii").rstrip("?")
    return re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", letters)


def blocks(picture: Image.Image, cells: Cells, truecolor: bool) -> str:
    """A picture of half blocks, two pixels a cell, in 24-bit colours or xterm's 256."""
    columns, rows = cells
    small = picture.convert("RGB").resize((columns, 2 * rows), BICUBIC)
    pixels = _truecolor(small) if truecolor else _of_256(small)
    lines = []
    for top in range(0, len(pixels), 2 * columns):
        upper, lower = pixels[top : top + columns], pixels[top + columns : top + 2 * columns]
        runs = groupby(zip(upper, lower, strict=True))
        line = "".join(
            f"\x1b[38;{front};48;{back}m{UPPER_HALF * len(list(run))}"
            for (front, back), run in runs
        )
        lines.append(f"{line}\x1b[0m\x1b[K\n")
    return "".join(lines)


def _truecolor(picture: Image.Image) -> list[str]:
    """Each pixel's colour as 24-bit escape parameters."""
    data = picture.tobytes()
    return ["2;{};{};{}".format(*data[i : i + 3]) for i in range(0, len(data), 3)]


def _of_256(picture: Image.Image) -> list[str]:
    """Each pixel's colour of xterm's 256, dithered; the first 16 depend on the user's theme."""
    cube = [level for colour in product(CUBE, repeat=3) for level in colour]
    greys = [level for grey in range(8, 248, 10) for level in (grey,) * 3]
    palette = Image.new("P", (1, 1))
    palette.putpalette(cube + greys)
    numbers = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return [f"5;{16 + number}" for number in numbers.tobytes()]


def _over(drawing: str, rows: int) -> str:
    """A drawing on rows that are made first, so that the terminal does not scroll meanwhile."""
    return "\n" * rows + f"\x1b[{rows}A\x1b7{drawing}\x1b8\x1b[{rows}B"


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.convert("RGB").save(file, "png", compress_level=1)  # speed before size
    return file.getvalue()
