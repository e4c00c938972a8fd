"""PNG files: their texts are chunks, written and read by Pillow."""

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

TEXT_MAX = 2**20  # characters of one text
TEXTS_MAX = 64
DECODED_MAX = 2**24  # pixels


def encode(image: "Image.Image", texts: Mapping[str, str]) -> bytes:
    """The PNG file of a picture with texts."""
    file = BytesIO()
    image.save(file, "png", pnginfo=text_chunks(texts))
    return file.getvalue()


def text_chunks(texts: Mapping[str, str]) -> "PngInfo":
    """Texts as chunks: plain ones where ASCII will do, else UTF-8."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, text in texts.items():
        (chunks.add_text if text.isascii() else chunks.add_itxt)(key, text)
    return chunks


def read(file: BinaryIO) -> tuple[int, int, dict[str, str]]:
    """Width, height and texts of a PNG whose checksums are right; errors are Pillow's."""
    from PIL import Image

    with Image.open(file, formats=("PNG",)) as image:
        size, texts = image.size, _texts(image.info)
        image.verify()  # up to the end of the file, without decoding
    if not texts and size[0] * size[1] <= DECODED_MAX:
        with Image.open(file, formats=("PNG",)) as image:
            image.load()  # ImageMagick writes texts behind the pixels
            texts = _texts(image.info)
    return *size, texts


def _texts(info: Mapping[str | tuple[int, int], object]) -> dict[str, str]:
    """The texts among what Pillow knows of a file; it drops what it cannot decompress."""
    from PIL.PngImagePlugin import iTXt

    texts = {
        str(key): str(text) if isinstance(text, iTXt) else _utf8(text)
        for key, text in info.items()
        if isinstance(text, str) and len(text) <= TEXT_MAX
    }
    return dict(list(texts.items())[:TEXTS_MAX])


def _utf8(text: str) -> str:
    """A plain chunk's text, which is Latin-1; but stable-diffusion.cpp and others write UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text
