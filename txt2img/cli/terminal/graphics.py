"""Pictures as what terminals draw: the kitty and iTerm2 protocols, sixels, coloured half blocks.

Each gives a text that leaves the cursor at the beginning of the line below the picture, whatever
the terminal itself does with it.
"""

import base64
import re
from collections.abc import Iterator
from io import BytesIO
from itertools import groupby, product

from PIL import Image

Cells = tuple[int, int]  # columns, rows
CHUNK = 4096  # bytes of a kitty command's payload
COLOURS = 256  # of a sixel picture
CUBE = (0, 95, 135, 175, 215, 255)  # the levels of the 256 colours' cube; the greys go by tens
UPPER_HALF = "▀"
SIGNS = bytes((bits + 63) % 256 for bits in range(256))  # a sixel's letter, by its six bits


def fit(size: tuple[int, int], room: Cells, cell: tuple[int, int]) -> Cells:
    """The most columns and rows, at least one, that a picture fills in a room without distortion.

    `cell` says how wide and high a cell is.
    """
    width, height = size[0] / cell[0], size[1] / cell[1]
    scale = min(room[0] / width, room[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def kitty(picture: Image.Image, cells: Cells, number: int) -> str:
    """A picture by kitty's graphics protocol; one of the same number is replaced."""
    payload = base64.b64encode(_png(picture)).decode()
    parts = [payload[i : i + CHUNK] for i in range(0, len(payload), CHUNK)]
    first = f"a=T,f=100,i={number},p=1,q=2,C=1,c={cells[0]},r={cells[1]},"
    commands = [
        f"\x1b_G{'' if i else first}m={int(i < len(parts) - 1)};{part}\x1b\\"
        for i, part in enumerate(parts)
    ]
    return _over("".join(commands), cells[1])


def kitty_gone(number: int) -> str:
    """What takes a kitty picture away."""
    return f"\x1b_Ga=d,d=I,i={number},q=2\x1b\\"


def iterm(picture: Image.Image, cells: Cells) -> str:
    """A picture by iTerm2's protocol for inline images, which WezTerm and mintty know too."""
    data = _png(picture)
    size = f"size={len(data)};width={cells[0]};height={cells[1]}"
    how = f"inline=1;{size};preserveAspectRatio=0;doNotMoveCursor=1"
    return _over(f"\x1b]1337;File={how}:{base64.b64encode(data).decode()}\x07", cells[1])


def sixel(picture: Image.Image, cells: Cells) -> str:
    """A picture as sixels: strips of six rows, each colour's dots in a strip one after the other.

    DEC STD 070, chapter 9; the picture's size is in the raster attributes.
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
    """The sixels of each six rows of colour numbers, equal ones counted."""
    rows = [pixels[i : i + width] for i in range(0, len(pixels), width)]
    alone = {colour: bytes(colour) + b"\1" + bytes(255 - colour) for colour in set(pixels)}
    for top in range(0, len(rows), 6):
        strip = rows[top : top + 6]
        colours = sorted(set(b"".join(strip)))
        yield "$".join(f"#{colour}{_counted(_dots(strip, alone[colour]))}" for colour in colours)


def _dots(strip: list[bytes], alone: bytes) -> bytes:
    """Up to six rows as one of six bits a byte, set where `alone` makes a 1 of the colour.

    All columns at once, as one large number: a loop over the pixels would take ten times as long.
    """
    bits = 0
    for y, row in enumerate(strip):
        bits |= int.from_bytes(row.translate(alone), "big") << y
    return bits.to_bytes(len(strip[0]), "big")


def _counted(dots: bytes) -> str:
    """A row of sixels: `!n` says a sign n times where that is shorter."""
    signs = dots.translate(SIGNS).decode("ascii").rstrip("?")
    return re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", signs)


def blocks(picture: Image.Image, cells: Cells, deep: bool) -> str:
    """A picture of half blocks: two pixels a cell, in 24-bit colours if `deep`, else of the 256."""
    columns, rows = cells
    small = picture.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BICUBIC)
    pixels = _deep(small) if deep else _of_256(small)
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


def _deep(picture: Image.Image) -> list[str]:
    """Each pixel's colour as a terminal of 24-bit colours is told it."""
    data = picture.tobytes()
    return ["2;{};{};{}".format(*data[i : i + 3]) for i in range(0, len(data), 3)]


def _of_256(picture: Image.Image) -> list[str]:
    """Each pixel's colour of xterm's 256, dithered; the first 16 are the user's own, and left."""
    cube = [level for colour in product(CUBE, repeat=3) for level in colour]
    greys = [level for grey in range(8, 248, 10) for level in (grey,) * 3]
    palette = Image.new("P", (1, 1))
    palette.putpalette(cube + greys)
    numbers = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return [f"5;{16 + number}" for number in numbers.tobytes()]


def _over(drawing: str, rows: int) -> str:
    """The drawing on rows that are made first, so that no terminal scrolls while it draws."""
    return "\n" * rows + f"\x1b[{rows}A\x1b7{drawing}\x1b8\x1b[{rows}B"


def _png(picture: Image.Image) -> bytes:
    file = BytesIO()
    picture.convert("RGB").save(file, "png", compress_level=1)  # a terminal is near
    return file.getvalue()
