"""A part of the way from noise to picture, written LO..HI: 0 is noise, 1 the picture."""

import math
from dataclasses import dataclass

from txt2img.errors import BadRequest
from txt2img.system.text import shown


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both counted in. BadRequest unless 0 ≤ low < high ≤ 1."""

    low: float
    high: float

    def __post_init__(self) -> None:
        for value in (self.low, self.high):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadRequest(f"an interval is of two numbers, got {shown(value)}")
        if not 0 <= self.low < self.high <= 1:
            raise BadRequest(
                f"an interval LO..HI needs 0 ≤ LO < HI ≤ 1, got {self.low}..{self.high}"
            )

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}"

    def __contains__(self, part: float) -> bool:
        return self.low <= part <= self.high


def parse_interval(text: str) -> Interval:
    """What LO..HI means; an end that is not said is the way's. BadRequest."""
    low, dots, high = text.strip().partition("..")
    try:
        if not dots:
            raise ValueError
        ends = float(low or 0), float(high or 1)
    except ValueError:
        raise BadRequest(
            f"an interval is LO..HI, two parts of the way from 0 to 1, got {shown(text)}"
        ) from None
    if not all(map(math.isfinite, ends)):
        raise BadRequest(f"an interval LO..HI needs 0 ≤ LO < HI ≤ 1, got {shown(text)}")
    return Interval(*ends)
