"""Picture files of every format: written with the request that made them, and read.

A PNG has its texts in chunks, other formats in EXIF data.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.images import exif, formats
from txt2img.images.formats import PNG, SVG, Format
from txt2img.images.record import ImageInfo, Origin, metadata, parse_texts, pixels_sha256
from txt2img.request import Request
from txt2img.request.fields import SEEDS
from txt2img.system.files import open_regular
from txt2img.system.text import shown

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

Content = tuple[int, int, dict[str, str]]  # width, height, texts
FILE_MAX = 2**29  # bytes
FALLBACKS = 200  # bytes for what a lack of memory may add to a record


def encode(
    image: "Image.Image",
    request: Request,
    origin: Origin,
    first_seed: int | None = None,
    format: Format = PNG,
) -> bytes:
    """The file of a picture, with the filled request that made it.

    `first_seed` is the seed asked for, if its picture was rejected. BadRequest if a file of that
    format cannot hold so much text.
    """
    texts = metadata(request, origin, pixels_sha256(image), first_seed)
    return encode_texts(image, texts, format)


def encode_texts(image: "Image.Image", texts: Mapping[str, str], format: Format) -> bytes:
    """The file of a picture with any texts. BadRequest if it cannot hold so much."""
    if format.name == PNG.name:
        return encode_png(image, texts)
    if format.name == SVG.name:
        from txt2img.images import svg

        return svg.encode(image, texts)
    exif.check_text_fits(texts, format)
    return exif.encode(image, texts, format)


def check_record_fits(request: Request, origin: Origin, format: Format) -> None:
    """Raise BadRequest if a file of that format cannot hold a picture or its record."""
    if request.transparent and not request.background and not format.alpha:
        raise BadRequest(
            f"a {format.name} file holds no transparency; choose png, webp, avif or svg, or give a "
            "--background"
        )
    if format.exif_max is not None:
        texts = metadata(request, origin, "0" * 64, SEEDS)
        exif.check_text_fits(texts | {"txt2img": texts["txt2img"] + " " * FALLBACKS}, format)


def read(path: Path) -> ImageInfo:
    """A picture's size, texts and request. BadFile if it is no picture, or broken."""
    with open_regular(path) as file:
        return read_stream(file, str(path))


def reader_of(format: Format) -> Callable[[BinaryIO], Content]:
    """What reads the size and texts of a format's files."""
    if format.name == SVG.name:
        from txt2img.images import svg

        return svg.read
    return read_png if format == PNG else exif.read


def read_stream(file: BinaryIO, name: str) -> ImageInfo:
    """As `read`, of an open file."""
    format = formats.by_content(file.read(formats.HEAD))
    if format is None:
        names = ", ".join(formats.PILLOW_NAMES)
        raise BadFile(f"{shown(name)} is no picture: it begins like none of {names}")
    try:
        width, height, texts = _read(file, reader_of(format))
    except ValueError as error:
        raise BadFile(f"{shown(name)} is not a whole {format.name} file: {error}") from error
    return parse_texts(ImageInfo(width, height, texts))


def _read(file: BinaryIO, read: Callable[[BinaryIO], Content]) -> Content:
    """Call a reader. ValueError."""
    if file.seek(0, os.SEEK_END) > FILE_MAX:
        raise ValueError(f"it is larger than {FILE_MAX >> 20} MiB")
    file.seek(0)
    with pillow_errors():
        return read(file)


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Turn everything that Pillow raises into ValueError, and hide its warnings.

    Its parsers and their libraries raise all kinds of errors for damaged files.
    """
    from PIL import UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about odd and large pictures; real faults raise
        try:
            yield
        except UnidentifiedImageError:
            raise ValueError("it is damaged or cut short") from None
        except (Txt2imgError, MemoryError):
            raise
        except Exception as error:
            raise ValueError(str(error) or type(error).__name__) from error


TEXT_MAX = 2**20  # characters of one text
TEXTS_MAX = 64
DECODED_MAX = 2**24  # pixels


def encode_png(image: "Image.Image", texts: Mapping[str, str]) -> bytes:
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


def read_png(file: BinaryIO) -> Content:
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
