"""Compact texts of sampling: explicit noise levels."""

import math
from itertools import pairwise

from txt2img.errors import BadRequest
from txt2img.system.text import shown

LEVELS_MAX = 10_001


def numbers(name: str, text: str, example: str) -> list[float]:
    """The numbers of a list with commas. BadRequest, with an example, for anything else."""
    try:
        values = [float(part) for part in text.split(",")]
        if any(math.isnan(value) for value in values):
            raise ValueError
    except ValueError:
        raise BadRequest(
            f"{name} takes numbers with commas, such as {example}; got {shown(text)}"
        ) from None
    return values


def parse_sigmas(text: str) -> list[float]:
    """Noise levels from the noisiest to 0, which may be left out; inf is pure noise. BadRequest."""
    sigmas = numbers("sigmas", text, "14.6,7,3,1,0")
    if sigmas[-1] > 0:
        sigmas.append(0.0)
    if not 2 <= len(sigmas) <= LEVELS_MAX:
        raise BadRequest(f"sigmas takes 2 to {LEVELS_MAX:,} levels, got {len(sigmas):,}")
    for a, b in pairwise(sigmas):
        if not a > b >= 0:
            raise BadRequest(f"sigmas must fall to 0, but {b:g} comes after {a:g}")
    return sigmas
