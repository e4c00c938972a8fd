"""SVG files: a picture traced into shapes of even colours, sharp at any size, by vtracer.

Meant for flat styles; smooth shading becomes bands.
"""

import html
import json
import re
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from txt2img.system.files import parse_json

if TYPE_CHECKING:
    from PIL import Image

COLOURS = 12
OPAQUE = 128  # of 255: a pixel is drawn or left out
HEAD_MAX = 2**22  # bytes that hold a file's first tag and its texts
NAMESPACE = "urn:txt2img"
_TAG = re.compile(r"<svg\b[^>]*>")
_TEXTS = re.compile(r"<t:texts\b[^>]*>(.*?)</t:texts>", re.DOTALL)


def encode(image: "Image.Image", texts: Mapping[str, str]) -> bytes:
    """The SVG file of a picture, with its texts in <metadata>: the same bytes each time."""
    import vtracer

    file = BytesIO()
    few_colours(image).save(file, "PNG", compress_level=1)
    traced = vtracer.convert_raw_image_to_svg(
        file.getvalue(),
        img_format="png",
        colormode="color",
        hierarchical="stacked",  # shapes overlap, so no gaps show between them
        mode="spline",
        filter_speckle=4,
        color_precision=8,
        layer_difference=0,
        path_precision=1,
    )
    found = _TAG.search(traced)
    assert found is not None
    width, height = image.size
    # Texts are plain ASCII: XML allows fewer characters than JSON.
    record = html.escape(json.dumps(dict(texts)), quote=False)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f'<metadata><t:texts xmlns:t="{NAMESPACE}">{record}</t:texts></metadata>',
        traced[found.end() :].strip(),
    ]
    return ("\n".join(lines) + "\n").encode()


def few_colours(image: "Image.Image") -> "Image.Image":
    """The picture in COLOURS even colours, without the mixed ones along edges; RGBA if it was."""
    from PIL import Image, ImageFilter

    smoothed = image.convert("RGB").filter(ImageFilter.MedianFilter(3))
    reduced = smoothed.quantize(
        COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE
    ).convert("RGB")
    if not image.has_transparency_data:
        return reduced
    drawn = image.convert("RGBA").getchannel("A").point(lambda a: 255 * (a >= OPAQUE))
    cut = Image.new("RGBA", image.size)
    cut.paste(reduced, mask=drawn)
    return cut


def read(file: BinaryIO) -> tuple[int, int, dict[str, str]]:
    """Width, height and texts of a file, whoever wrote it. ValueError."""
    head = file.read(HEAD_MAX).decode("utf-8", errors="replace")
    tag = _TAG.search(head)
    if tag is None:
        raise ValueError("it has no <svg> element")
    sizes = [
        re.search(rf'\b{side}="(\d+)(?:\.\d+)?(?:px)?"', tag[0]) for side in ("width", "height")
    ]
    width, height = (0 if size is None else int(size[1][:9]) for size in sizes)
    found = _TEXTS.search(head)
    texts = parse_json(html.unescape(found[1])) if found else {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("its texts are broken")
    return width, height, texts


def count_paths(data: bytes) -> int:
    """The number of shapes in a file."""
    return data.count(b"<path ")
