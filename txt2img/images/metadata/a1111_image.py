"""The picture that A1111's img2img and inpainting began from, as processing.py writes of it.

Its text has no picture's name; with "Save a copy of the init image" the copy is called by its hash.
"""

from collections.abc import Mapping

from txt2img.images.metadata.a1111_hires import BOTH, STRENGTH_KEY, hires_fields
from txt2img.request.input_image import UNNAMED

# Written of a picture with a mask alone.
OF_MASKS = ("Mask blur", "Mask mode", "Masked content", "Inpaint area", "Masked area padding")
COPY = "Init image hash"
KEYS = (*OF_MASKS, COPY, "Init image size", "Resize mode", "Outpaint", "Operations")
NOT_AT_ALL = ("", "0", "0.0", "1", "1.0", "None")


def image_fields(entries: Mapping[str, str]) -> dict[str, object]:
    """The fields of a picture to begin from, and how it was used; none if noise was begun from."""
    strength = entries.get(STRENGTH_KEY)
    masked = any(key in entries for key in OF_MASKS)
    if not (masked or COPY in entries or _is_img2img(entries)):
        return {}
    copy = entries.get(COPY)
    values: dict[str, object] = {
        "image": {"name": f"{copy}.png" if copy else UNNAMED},
        "strength": None if strength is None else float_or_text(strength),
        "resize": entries.get("Resize mode"),
        "outpaint": entries.get("Outpaint"),
    }
    if masked:
        part = entries.get("Inpaint area") == "Only masked"
        values |= {
            "mask": {"name": UNNAMED},
            "mask_blur": float_or_text(entries.get("Mask blur", "0")),
            "mask_invert": entries.get("Mask mode") == "Inpaint not masked",
            "inpaint_fill": entries.get("Masked content"),
            "only_masked": _padding(entries) if part else None,
        }
    return {name: value for name, value in values.items() if value not in (None, "")}


def _is_img2img(entries: Mapping[str, str]) -> bool:
    """Whether a strength is that of a picture to begin from, not of a second pass."""
    if "Operations" in entries:  # SD.Next
        return any(word in entries["Operations"] for word in ("img2img", "inpaint"))
    if entries.get("App") == "Draw Things":
        return entries.get("Strength", "") not in NOT_AT_ALL
    if hires_fields(entries) or "First pass size" in entries:
        return BOTH in entries
    return entries.get(STRENGTH_KEY, "") not in NOT_AT_ALL


def _padding(entries: Mapping[str, str]) -> object:
    text = entries.get("Masked area padding", "32")
    return int(text) if text.isdecimal() else text


def float_or_text(text: str) -> float | str:
    """The number that a text is, or the text itself, for the request's checks to refuse."""
    try:
        return float(text)
    except ValueError:
        return text
