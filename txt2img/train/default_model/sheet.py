"""A sheet of pictures, each with its label."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WHITE = "#ffffff"


def sheet(images: Sequence[Image.Image], labels: Sequence[str], columns: int) -> Image.Image:
    """The pictures in rows of `columns` on white, each with its label below."""
    width, height = (max(getattr(i, side) for i in images) for side in ("width", "height"))
    gap, size = max(4, width // 16), max(10, width // 12)
    font = ImageFont.load_default(size)
    texts = ["\n".join(wrapped(label, width, font)) for label in labels]
    lines = max(text.count("\n") + 1 for text in texts)
    cell = (width + gap, height + gap // 2 + round(lines * size * 1.35) + gap)
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), WHITE)
    pen = ImageDraw.Draw(page)
    for n, (image, text) in enumerate(zip(images, texts, strict=True)):
        left, top = gap + n % columns * cell[0], gap + n // columns * cell[1]
        page.paste(image.convert("RGB"), (left, top))
        middle = (left + width // 2, top + height + gap // 2)
        pen.multiline_text(middle, text, "#333333", font, anchor="ma", align="center")
    return page


def wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines no wider than `width` pixels, as far as its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines or [""]
