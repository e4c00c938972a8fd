"""EXIF data and comments: the texts of JPEG, WebP and AVIF files.

A1111 writes its text as UserComment, in UTF-16. So do we; all other texts become one JSON object in
ImageHistory, the tag for what was done to make the picture.
"""

import html
import json
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from txt2img.errors import BadRequest
from txt2img.images.formats import PILLOW_NAMES, Format
from txt2img.images.metadata.parsed import written_json
from txt2img.system.files import parse_json

if TYPE_CHECKING:
    from PIL import Image

TEXT_MAX = 2**20  # bytes
UTF16 = b"UNICODE\0"
ENCODINGS = {UTF16: "utf-16-be", b"ASCII\0\0\0": "utf-8", b"\0" * 8: "utf-8"}
FULL_COLOUR = 90  # the JPEG quality from which colours keep the full resolution


def read(file: BinaryIO) -> tuple[int, int, dict[str, str]]:
    """Width, height and texts of a file, without decoding its pixels; errors are Pillow's."""
    from PIL import ExifTags, Image

    with Image.open(file, formats=PILLOW_NAMES) as image:
        exif = image.getexif()
        tag = ExifTags.Base.UserComment
        user_comment = exif.get_ifd(ExifTags.IFD.Exif).get(tag)
        if user_comment is None:  # Fooocus writes it into the main directory
            user_comment = exif.get(tag)
        texts = {
            **_comfyui(exif.get(ExifTags.Base.Model)),
            **_comfyui(exif.get(ExifTags.Base.Make)),
            **own_texts(exif.get(ExifTags.Base.ImageHistory)),
        }
        if text := _user_comment(user_comment):
            # JSON is another program's, unless we wrote it; all else is A1111's text.
            is_json = bool(written_json({"UserComment": text}))
            texts["UserComment" if is_json and not texts else "parameters"] = text
        if text := _sdcpp(image.info.get("comment"), image.info.get("xmp")):
            texts.setdefault("parameters", text)
        return *image.size, texts


def own_texts(history: object) -> dict[str, str]:
    """The texts that `to_exif` put into ImageHistory; none if another program wrote that."""
    if not isinstance(history, bytes) or len(history) > TEXT_MAX:
        return {}
    try:
        texts = parse_json(history.decode("utf-8").rstrip("\0"))
    except ValueError:
        return {}
    if not isinstance(texts, dict):
        return {}
    return {k: v for k, v in texts.items() if k.startswith("txt2img") and isinstance(v, str)}


def to_exif(texts: Mapping[str, str]) -> bytes:
    """EXIF data that holds texts."""
    from PIL import ExifTags, Image

    exif = Image.Exif()
    others = {key: text for key, text in texts.items() if key != "parameters"}
    exif[ExifTags.Base.ImageHistory] = json.dumps(others, ensure_ascii=False).encode("utf-8")
    if "parameters" in texts:
        comment = UTF16 + texts["parameters"].encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()


def check_text_fits(texts: Mapping[str, str], format: Format) -> None:
    """Raise BadRequest if a file of that format cannot hold so much text."""
    if format.exif_max is not None and (size := len(to_exif(texts))) > format.exif_max:
        raise BadRequest(
            f"a {format.name} holds {format.exif_max:,} bytes of text, this prompt makes {size:,}; "
            "choose --format png or webp"
        )


def encode(image: "Image.Image", texts: Mapping[str, str], format: Format) -> bytes:
    """The file of a picture with texts: the same bytes each time."""
    assert format.quality is not None
    options: dict[str, object] = {}
    if format.name == "JPEG":
        colours = "4:4:4" if format.quality >= FULL_COLOUR else "4:2:0"
        options = {"subsampling": colours, "optimize": True}
    elif format.name == "WEBP":
        options = {"lossless": format.quality == 100}
    elif format.name == "AVIF":
        options = {"max_threads": 1}  # its tiles would follow the number of threads
    file = BytesIO()
    image.save(file, format.name, quality=format.quality, exif=to_exif(texts), **options)
    return file.getvalue()


def _comfyui(tag: object) -> dict[str, str]:
    """The graph in one of ComfyUI's tags, which begins with `prompt:` or `workflow:`."""
    name, colon, text = tag.partition(":") if isinstance(tag, str) else ("", "", "")
    if not colon or name not in ("prompt", "workflow") or len(text) > TEXT_MAX:
        return {}
    return {name: text.rstrip("\0")}


def _sdcpp(comment: object, packet: object) -> str:
    """stable-diffusion.cpp's text: a JPEG's comment, or in a WebP's XMP packet; else empty."""
    if isinstance(comment, bytes) and comment.startswith(b"parameters\0"):
        text = comment[:TEXT_MAX].removeprefix(b"parameters\0")
        return text.rstrip(b"\0").decode("utf-8", errors="replace")
    if not isinstance(packet, bytes) or len(packet) > TEXT_MAX:
        return ""
    _, _, rest = packet.decode("utf-8", errors="replace").partition("<sdcpp:parameters>")
    escaped, end, _ = rest.partition("</sdcpp:parameters>")
    return html.unescape(escaped) if end else ""


def _user_comment(value: object) -> str:
    """The text of a UserComment; empty if there is none, or too long a one."""
    if not isinstance(value, str | bytes) or len(value) > TEXT_MAX:
        return ""
    if isinstance(value, str):
        return value
    encoding = ENCODINGS.get(value[:8])
    text = value[8:] if encoding else value
    if encoding == "utf-16-be" and text[:1] != b"\0" and text[1:2] == b"\0":
        encoding = "utf-16-le"  # some programs write the other byte order
    return text.decode(encoding or "utf-8", errors="replace").strip("\0")
