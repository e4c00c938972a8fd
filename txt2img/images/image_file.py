"""Pictures out and in, with the request that made them.

A picture carries two texts: `parameters` as A1111 writes it, for other programs, and `txt2img`,
a JSON object with the whole request, the model's name and hash and the environment. Neither holds
a path, a user, a host or a time, so the same request gives the same bytes.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from txt2img.errors import BadFile, BadRequest
from txt2img.images import exif, output
from txt2img.images.formats import PNG, Format
from txt2img.images.metadata import a1111, readers
from txt2img.request import Request
from txt2img.request.fields import SEEDS
from txt2img.system.files import open_regular, parse_json
from txt2img.system.text import shown
from txt2img.system.version import __version__

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORMAT = 1  # of the JSON text
TEXT_MAX = 2**20  # bytes of one text, unpacked
TEXTS_MAX = 64
CHUNKS_MAX = 100_000
FALLBACKS = 100  # bytes for what the memory at hand may yet make of a picture
HEAD = 16  # bytes of a file that tell what it is


@dataclass(frozen=True)
class Origin:
    """What made a picture besides its request."""

    model: str = ""
    hash: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Its part of a record."""
        model = {"name": self.model, "hash": self.hash}
        return {"model": model, "environment": dict(self.environment)}

    @classmethod
    def from_json(cls, model: object, environment: object) -> Self:
        """The same of a record's two tables. ValueError."""
        named, said = table(model), table(environment)
        values = {key: str(value) for key, value in said.items()}
        return cls(str(named.get("name", "")), str(named.get("hash", "")), values)


@dataclass(frozen=True)
class ImageInfo:
    """What a picture says about itself."""

    width: int
    height: int
    texts: dict[str, str]  # every text chunk
    request: Request | None = None
    origin: Origin = field(default_factory=Origin)
    pixels_sha256: str = ""
    first_seed: int | None = None  # what was asked for, if its picture was rejected
    notes: tuple[str, ...] = ()  # what could not be understood


def encode(
    image: "Image.Image",
    request: Request,
    origin: Origin,
    first_seed: int | None = None,
    form: Format = PNG,
) -> bytes:
    """The file of a picture and of the filled request that made it, a PNG unless it is said.

    `first_seed` is the seed that was asked for, if what it gave was rejected. BadRequest if a
    file of that format cannot hold so much text.
    """
    texts = metadata(request, origin, pixels_sha256(image), first_seed)
    return encode_texts(image, texts, form)


def metadata(
    request: Request, origin: Origin, pixels: str, first_seed: int | None = None
) -> dict[str, str]:
    """The texts of a picture, by A1111's words and by ours; `pixels` is the hash of its pixels."""
    request = replace(request, model=origin.model)  # a name: never the path that the user gave
    ours = {
        "version": FORMAT,
        "request": request.to_json(),
        **origin.to_json(),
        "pixels_sha256": pixels,
    } | ({} if first_seed is None else {"first_seed": first_seed})
    parameters = a1111.describe(request, origin.model, origin.hash, __version__)
    return {"parameters": str(parameters), "txt2img": json.dumps(ours, ensure_ascii=False)}


def encode_texts(image: "Image.Image", texts: Mapping[str, str], form: Format) -> bytes:
    """The file of a picture with texts. BadRequest if it cannot hold so much."""
    if form.name != "PNG":
        exif.check_room(texts, form)
        return exif.encode(image, texts, form)
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, text in texts.items():
        _add(chunks, key, text)
    file = BytesIO()
    image.save(file, "png", pnginfo=chunks)
    return file.getvalue()


def check_room(request: Request, origin: Origin, form: Format) -> None:
    """Raise BadRequest if a file of that format cannot hold what is to be said of a picture."""
    if form.name == "JPEG":
        texts = metadata(request, origin, "0" * 64, SEEDS)
        exif.check_room(texts | {"txt2img": texts["txt2img"] + " " * FALLBACKS}, form)


def pixels_sha256(image: "Image.Image") -> str:
    """The hash (64 hex digits) of a picture's pixels alone."""
    return sha256(image.tobytes()).hexdigest()


def save(
    image: "Image.Image", path: Path, request: Request, origin: Origin, overwrite: bool = False
) -> None:
    """Write a picture, whole or not at all; BadOutput if that is not possible."""
    output.publish(encode(image, request, origin), path, overwrite)


def read(path: Path) -> ImageInfo:
    """What a picture says, without decoding its pixels. BadFile if it is none, or broken."""
    with open_regular(path) as file:
        kind = kind_of(file.read(HEAD))
        file.seek(0)
        try:
            width, height, texts = _scan(file) if kind in ("", "PNG") else exif.read(file)
        except (ValueError, struct.error, zlib.error) as error:
            raise BadFile(
                f"{shown(str(path))} is not a whole {kind or 'PNG'} file: {error}"
            ) from error
    return _understood(ImageInfo(width, height, texts))


def kind_of(head: bytes) -> str:
    """PNG, JPEG, WEBP or AVIF, told by a file's first bytes; empty if it is none of them."""
    if head.startswith(SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if head[4:12] in (b"ftypavif", b"ftypavis") else ""


def _add(texts: "PngInfo", key: str, text: str) -> None:
    """A text chunk: plain where ASCII will do, else UTF-8."""
    if text.isascii():
        texts.add_text(key, text)
    else:
        texts.add_itxt(key, text)


def _scan(file: BinaryIO) -> tuple[int, int, dict[str, str]]:
    """Width, height and texts of a PNG; ValueError says what is wrong."""
    if file.read(8) != SIGNATURE:
        raise ValueError("it does not begin like one, nor like JPEG, WebP or AVIF")
    texts: dict[str, str] = {}
    size: tuple[int, int] | None = None
    for kind, body in _chunks(file):
        if kind == b"IHDR":
            size = struct.unpack(">II", body[:8])
        elif len(texts) < TEXTS_MAX:
            key, text = _text(kind, body)
            texts.setdefault(key, text)
    if size is None:
        raise ValueError("it has no header")
    return *size, texts


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The header and the texts of a PNG, up to its end; other chunks are passed over."""
    for _ in range(CHUNKS_MAX):
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("it ends too early")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind not in (b"IHDR", b"tEXt", b"zTXt", b"iTXt") or length > TEXT_MAX:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        body, check = file.read(length), file.read(4)
        if len(check) < 4:
            raise ValueError("it ends too early")
        if zlib.crc32(kind + body) != int.from_bytes(check, "big"):
            raise ValueError("a checksum is wrong")
        yield kind, body
    raise ValueError("it has too many chunks")


def _text(kind: bytes, body: bytes) -> tuple[str, str]:
    """Key and text of a tEXt, zTXt or iTXt chunk."""
    key, _, rest = body.partition(b"\0")
    if kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:]
        rest = rest.split(b"\0", 2)[-1]  # after the language and the translated key
        text = (_unpacked(rest) if packed else rest).decode("utf-8", errors="replace")
        return key.decode("latin-1"), text
    raw = _unpacked(rest[1:]) if kind == b"zTXt" else rest
    try:
        return key.decode("latin-1"), raw.decode("utf-8")  # some programs write it raw
    except UnicodeDecodeError:
        return key.decode("latin-1"), raw.decode("latin-1")


def _unpacked(data: bytes) -> bytes:
    """A packed text, but never more than TEXT_MAX bytes of it."""
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(data, TEXT_MAX)
    if unpacker.unconsumed_tail:
        raise ValueError(f"a text unpacks to more than {TEXT_MAX:,} bytes")
    return text


def _understood(picture: ImageInfo) -> ImageInfo:
    """The picture with the request in its texts: ours if that is whole, else another program's."""
    notes: list[str] = []
    if "txt2img" in picture.texts:
        try:
            return _ours(picture, picture.texts["txt2img"])
        except (ValueError, BadRequest) as error:
            notes.append(f"its txt2img text cannot be used: {error}")
    if not picture.texts.get("parameters", "{").startswith("{"):
        try:
            info = a1111.parse(picture.texts["parameters"])
            request, more = a1111.to_request(info)
        except BadRequest as error:
            notes.append(f"its parameters text cannot be used: {error}")
        else:
            origin = Origin(info.entries.get("Model", ""), info.entries.get("Model hash", ""))
            return replace(picture, request=request, origin=origin, notes=(*notes, *more))
    try:
        found = readers.read(picture.texts)
    except ValueError as error:
        notes.append(f"what another program says of it cannot be used: {error}")
    else:
        if found is not None:
            request, more = readers.to_request(found)
            origin = Origin(request.model)
            return replace(picture, request=request, origin=origin, notes=(*notes, *more))
    return replace(picture, notes=tuple(notes))


def _ours(picture: ImageInfo, text: str) -> ImageInfo:
    """The picture as its JSON text describes it. ValueError, BadRequest."""
    found = table(parse_json(text))
    if found.get("version") != FORMAT:
        raise ValueError(f"version {shown(found.get('version'))}, known is {FORMAT}")
    return replace(
        picture,
        request=Request.from_json(table(found.get("request"))),
        origin=Origin.from_json(found.get("model", {}), found.get("environment", {})),
        pixels_sha256=str(found.get("pixels_sha256", "")),
        first_seed=_whole(found.get("first_seed")),
    )


def _whole(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError("its first seed is no number")
    return value


def table(value: object) -> dict[str, object]:
    """A record's object. ValueError."""
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value
