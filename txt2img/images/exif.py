"""What JPEG, WebP and AVIF files say of themselves: their EXIF data and comments, as texts.

The pixels are never decoded. A1111 writes its text as the user's comment, in UTF-16; so do we, and
all other texts as one JSON object into ImageHistory: what was done to make the picture.
"""

import html
import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

from txt2img.errors import BadRequest
from txt2img.images.formats import Format
from txt2img.system.files import parse_json

if TYPE_CHECKING:
    from PIL import Image

KINDS = ("JPEG", "WEBP", "AVIF")
FEATURES = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif"}  # Pillow's words for its codecs
TEXT_MAX = 2**20  # bytes
JPEG_MAX = 65_533  # bytes of EXIF data in a JPEG, which has it in one segment
UTF16 = b"UNICODE\0"
ENCODINGS = {UTF16: "utf-16-be", b"ASCII\0\0\0": "utf-8", b"\0" * 8: "utf-8"}
FINE = 90  # JPEG's quality from which colours are kept at full size


def read(file: BinaryIO) -> tuple[int, int, dict[str, str]]:
    """Width, height and texts of such a file. ValueError says what is wrong."""
    from PIL import ExifTags, Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=KINDS) as image:
            exif = image.getexif()
            held = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
            history = exif.get(ExifTags.Base.ImageHistory, b"")
            graph = graphs([exif.get(ExifTags.Base.Model), exif.get(ExifTags.Base.Make)])
            packet = image.info.get("xmp", b"")
            comment = image.info.get("comment", b"")
            size = image.size
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(KINDS)} either") from None
    except (OSError, SyntaxError, KeyError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    texts = graph | more_texts(history)
    said = user_comment(held)
    if said:
        # JSON is another program's, unless we wrote it; all else is A1111's text.
        other = said.startswith("{") and not texts
        texts["UserComment" if other else "parameters"] = said
    if isinstance(comment, bytes) and comment.startswith(b"parameters\0"):
        # The way of stable-diffusion.cpp.
        _, _, text = comment[:TEXT_MAX].partition(b"\0")
        texts.setdefault("parameters", text.rstrip(b"\0").decode("utf-8", errors="replace"))
    if words := parameters_in(packet):
        texts.setdefault("parameters", words)
    return *size, texts


def graphs(tags: Iterable[object]) -> dict[str, str]:
    """What ComfyUI says in a WebP: each tag begins with what it holds, a prompt or a workflow."""
    found = {}
    for tag in tags:
        name, sign, text = tag.partition(":") if isinstance(tag, str) else ("", "", "")
        if sign and name in ("prompt", "workflow") and len(text) <= TEXT_MAX:
            found[name] = text.rstrip("\0")
    return found


def parameters_in(packet: object) -> str:
    """The text that stable-diffusion.cpp puts into a WebP's XMP packet; empty if there is none."""
    if not isinstance(packet, bytes) or len(packet) > TEXT_MAX:
        return ""
    _, _, rest = packet.decode("utf-8", errors="replace").partition("<sdcpp:parameters>")
    text, end, _ = rest.partition("</sdcpp:parameters>")
    return html.unescape(text) if end else ""


def user_comment(held: object) -> str:
    """The text of a user's comment; empty if it has none, or too long a one."""
    if isinstance(held, str):
        return held if len(held) <= TEXT_MAX else ""
    if not isinstance(held, bytes) or len(held) > TEXT_MAX:
        return ""
    encoding = ENCODINGS.get(held[:8])
    text = held[8:] if encoding else held
    if encoding == "utf-16-be" and text[:1] != b"\0" and text[1:2] == b"\0":
        encoding = "utf-16-le"  # some writers take the other order
    return text.decode(encoding or "utf-8", errors="replace").strip("\0")


def more_texts(history: object) -> dict[str, str]:
    """The texts that we wrote beside A1111's; none if another program wrote what is there."""
    if not isinstance(history, bytes) or len(history) > TEXT_MAX:
        return {}
    try:
        found = parse_json(history.decode("utf-8").rstrip("\0"))
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if k.startswith("txt2img") and isinstance(v, str)}


def check(form: Format) -> None:
    """Raise BadRequest if the pictures of a format cannot be written here."""
    if form.name not in KINDS:
        return
    from PIL import features

    if not features.check(FEATURES[form.name]):
        raise BadRequest(
            f"this Pillow writes no {form.name}: install one that does, or choose --format png"
        )


def described(texts: Mapping[str, str]) -> bytes:
    """EXIF data with these texts."""
    from PIL import ExifTags, Image

    exif = Image.Exif()
    more = {key: text for key, text in texts.items() if key != "parameters"}
    exif[ExifTags.Base.ImageHistory] = json.dumps(more, ensure_ascii=False).encode("utf-8")
    if "parameters" in texts:
        comment = UTF16 + texts["parameters"].encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()


def check_room(texts: Mapping[str, str], form: Format) -> None:
    """Raise BadRequest if a file of that format cannot hold so much text."""
    size = len(described(texts)) if form.name == "JPEG" else 0
    if size > JPEG_MAX:
        raise BadRequest(
            f"a JPEG holds {JPEG_MAX:,} bytes of text, this prompt makes {size:,}; "
            "choose --format png or webp"
        )


def encode(image: "Image.Image", texts: Mapping[str, str], form: Format) -> bytes:
    """The JPEG, WebP or AVIF file of a picture with texts; the same bytes each time."""
    assert form.quality is not None
    file = BytesIO()
    data = described(texts)
    if form.name == "JPEG":
        colours = "4:4:4" if form.quality >= FINE else "4:2:0"
        image.save(
            file, "jpeg", quality=form.quality, exif=data, subsampling=colours, optimize=True
        )
    elif form.name == "WEBP":
        image.save(file, "webp", quality=form.quality, exif=data, lossless=form.quality == 100)
    else:
        # Its tiles would follow the number of threads.
        image.save(file, "avif", quality=form.quality, exif=data, max_threads=1)
    return file.getvalue()
