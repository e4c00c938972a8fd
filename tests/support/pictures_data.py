"""A small data set of plain pictures that anyone can tell apart, for tests of training."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": "#e02020", "green": "#20a040", "blue": "#2040e0", "yellow": "#e0c020"}
SHAPES = ("disc", "square", "bar", "frame")


def picture(colour: str, shape: str, size: int) -> Image.Image:
    """A shape of a colour on transparent ground."""
    image = Image.new("RGBA", (size, size))
    draw, a, b = ImageDraw.Draw(image), size // 4, 3 * size // 4
    fill = COLOURS[colour]
    if shape == "disc":
        draw.ellipse((a, a, b, b), fill=fill)
    elif shape == "square":
        draw.rectangle((a, a, b, b), fill=fill)
    elif shape == "bar":
        draw.rectangle((a, size * 3 // 8, b, size * 5 // 8), fill=fill)
    else:
        draw.rectangle((a, a, b, b), outline=fill, width=max(size // 10, 1))
    return image


def archive(path: Path, size: int = 32) -> Path:
    """Sixteen pictures with captions such as "red disc", as a zip in the imagefolder convention."""
    rows = []
    with zipfile.ZipFile(path, "w") as file:
        for colour in COLOURS:
            for shape in SHAPES:
                name = f"{colour}-{shape}.png"
                buffer = BytesIO()
                picture(colour, shape, size).save(buffer, "PNG")
                file.writestr(name, buffer.getvalue())
                rows.append(json.dumps({"file_name": name, "text": f"{colour} {shape}"}))
        file.writestr("metadata.jsonl", "\n".join(rows) + "\n")
    return path
