"""The second pass (hires. fix) in A1111's text, as its modules/processing.py writes it."""

import re
from collections.abc import Iterator, Mapping

from txt2img.request import Request
from txt2img.request.hires import STRENGTH, second_steps, upscaler_of
from txt2img.system.text import shown

STRENGTH_KEY = "Denoising strength"  # of the second pass, where the first began from noise
BOTH = "Hires denoising strength"  # ours, where it began from a picture
NONE = "None"  # the upscaler that is Pillow's Lanczos filter
# What A1111, Forge and their extensions may set for the second pass alone, and the same for the
# first, or words for "the same".
OTHERS = {
    "Hires sampler": "Sampler",
    "Hires schedule type": "Schedule type",
    "Hires CFG Scale": "CFG scale",
    "Hires Distilled CFG Scale": "Distilled CFG Scale",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Hires checkpoint": "Model",
    "Hires VAE": "VAE",
    "Hires Module 1": "",
}
SAME = re.compile(r"use same \w+", re.IGNORECASE)


def hires_entries(request: Request) -> dict[str, str | None]:
    """The entries of a filled request's second pass, besides those that are fields."""
    strength = STRENGTH if request.hires_strength is None else request.hires_strength
    size = request.hires_width or 0, request.hires_height or 0
    return {
        STRENGTH_KEY if request.image is None else BOTH: str(strength),
        "Hires resize": f"{size[0]}x{size[1]}" if any(size) else None,
        "Hires steps": str(request.hires_steps or second_steps(request)),
        "Hires upscaler": upscaler_of(request).label,
    }


def hires_fields(entries: Mapping[str, str]) -> dict[str, str]:
    """The fields of a second pass, as texts; none if the entries have none."""
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", entries.get("Hires resize", ""))
    if size is None and entries.get("Hires upscale", "0") in ("0", "0.0"):
        return {}
    values = {
        "hires": None if size else entries["Hires upscale"],
        "hires_width": size and size[1],
        "hires_height": size and size[2],
        "hires_steps": entries.get("Hires steps"),
        "hires_strength": entries.get(BOTH, entries.get(STRENGTH_KEY)),
        "hires_upscaler": "lanczos" if (name := entries.get("Hires upscaler")) == NONE else name,
    }
    return {name: text for name, text in values.items() if text not in (None, "0")}


def hires_notes(entries: Mapping[str, str]) -> Iterator[str]:
    """What the second pass did otherwise than the first, and is not carried over."""
    for key, first in OTHERS.items():
        text = entries.get(key, "")
        if text and not SAME.fullmatch(text) and text != entries.get(first):
            yield f"{key}: {shown(text, 40)} is not carried over"
