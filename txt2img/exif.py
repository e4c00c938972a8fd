"""What JPEG, WebP and AVIF files say of themselves: their EXIF data and comments, as texts.

The pixels are never decoded. A1111 writes its text as the user's comment, in UTF-16.
"""

from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

KINDS = ("JPEG", "WEBP", "AVIF")
TEXT_MAX = 2**20  # bytes
ENCODINGS = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "utf-8", b"\0" * 8: "utf-8"}


def read(file: BinaryIO) -> tuple[int, int, dict[str, str]]:
    """Width, height and texts of such a file. ValueError says what is wrong."""
    try:
        with Image.open(file, formats=KINDS) as image:
            exif = image.getexif()
            held = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
            comment = image.info.get("comment", b"")
            size = image.size
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(KINDS)} either") from None
    except (OSError, SyntaxError, KeyError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    texts = {}
    said = user_comment(held)
    if said:
        # JSON is another program's; all else is A1111's text.
        texts["UserComment" if said.startswith("{") else "parameters"] = said
    if isinstance(comment, bytes) and comment.startswith(b"parameters\0"):
        # The way of stable-diffusion.cpp.
        _, _, text = comment[:TEXT_MAX].partition(b"\0")
        texts.setdefault("parameters", text.rstrip(b"\0").decode("utf-8", errors="replace"))
    return *size, texts


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
