"""An interval of the steps, written LO..HI: 0 is noise, 1 the picture."""

import math
from dataclasses import dataclass

from txt2img.errors import BadRequest
from txt2img.request.adapters import object_from_json
from txt2img.system.text import shown


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included. BadRequest unless 0 ≤ low < high ≤ 1."""

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

    def __contains__(self, fraction: float) -> bool:
        return self.low <= fraction <= self.high

    def has_step(self, step: int, steps: int) -> bool:
        """Whether a step, from 0, lies in it as a whole, as diffusers counts them."""
        return step / steps >= self.low and (step + 1) / steps <= self.high


def parse_interval(text: str) -> Interval:
    """Parse LO..HI; a missing end is 0 or 1. BadRequest."""
    low, dots, high = text.strip().partition("..")
    try:
        if not dots:
            raise ValueError
        ends = float(low or 0), float(high or 1)
    except ValueError:
        raise BadRequest(
            f"an interval is LO..HI, two fractions of the steps from 0 to 1, got {shown(text)}"
        ) from None
    if not all(map(math.isfinite, ends)):
        raise BadRequest(f"an interval LO..HI needs 0 ≤ LO < HI ≤ 1, got {shown(text)}")
    return Interval(*ends)


def interval_from_json(value: object) -> Interval:
    """An interval from a JSON object, a pair of numbers or LO..HI. BadRequest."""
    if isinstance(value, str):
        value = parse_interval(value)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = Interval(*value)
    if not isinstance(value, Interval):
        value = object_from_json(Interval, "an interval", value)
    return value
