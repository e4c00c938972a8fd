"""Checks for failed pictures (NaN, black, flat), and what a run does with them."""

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from txt2img.errors import BadRequest, Rejected
from txt2img.system.text import shown

if TYPE_CHECKING:
    from PIL import Image

REASONS = ("nan", "black", "flat")  # nan always fails: no picture can be made of it
BLACK_MAX = 8  # of 255: the brightest value of a black picture
FLAT_MAX = 8  # of 255: the widest range of a flat picture's channels
RETRIES_MAX = 100


@dataclass(frozen=True)
class FailurePolicy:
    """Which pictures a run rejects, and what it does then."""

    reject: Collection[str] = ("nan",)
    retries: int = 0
    skip: bool = False  # continue with the next


def parse_reject(text: str) -> tuple[str, ...]:
    """Parse the reasons of --reject. BadRequest."""
    names = tuple(name.strip().lower() for name in text.split(","))
    for name in names:
        if name not in REASONS:
            raise BadRequest(f"no reason {shown(name)} to reject; choose from {', '.join(REASONS)}")
    return names


def check_image(image: "Image.Image", reject: Collection[str]) -> None:
    """Raise Rejected if a picture is black or flat and that is to be rejected."""
    if not {"black", "flat"} & set(reject):
        return
    levels = [channel.tobytes() for channel in image.convert("RGB").split()]
    channels = [(min(channel), max(channel)) for channel in levels]
    if "black" in reject and all(top <= BLACK_MAX for _, top in channels):
        raise Rejected("the picture is black; nothing was saved")
    if "flat" in reject and all(top - low <= FLAT_MAX for low, top in channels):
        raise Rejected("the picture is of one colour; nothing was saved")


def retry_seed(seed: int, attempt: int) -> int:
    """The seed of a picture's `attempt`-th retry, hashed: seed + 1 is the next picture's."""
    return int.from_bytes(sha256(f"{seed} {attempt}".encode()).digest()[:4], "big")
