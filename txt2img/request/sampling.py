"""Compact texts of sampling: explicit noise levels, and settings of guidance methods."""

import math
from collections.abc import Sequence
from itertools import pairwise

from txt2img.errors import BadRequest
from txt2img.system.text import shown

LEVELS_MAX = 10_001
SCALE_MAX = 1000.0


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


def settings(
    name: str, text: str, example: str, ranges: Sequence[tuple[float, float]], *defaults: float
) -> list[float]:
    """Numbers in their ranges, the last ones of which may be left out. BadRequest."""
    values = numbers(name, text, example)
    least = len(ranges) - len(defaults)
    if not least <= len(values) <= len(ranges):
        allowed = f"{least} to {len(ranges)}" if defaults else str(least)
        raise BadRequest(f"{name} takes {allowed} numbers, such as {example}; got {len(values)}")
    values += defaults[len(values) - least :]
    for value, (low, high) in zip(values, ranges, strict=True):
        if not low <= value <= high:
            raise BadRequest(f"{name} {shown(text)}: {value:g} is not {low:g} … {high:g}")
    return values


def parse_seg(text: str) -> list[float]:
    """Scale and blur of smoothed-energy guidance; inf blurs to the mean. BadRequest."""
    return settings("seg", text, "3,100", [(0, SCALE_MAX), (0.01, math.inf)], 100.0)


def parse_apg(text: str) -> list[float]:
    """Eta, threshold and momentum of adaptive projected guidance: the paper's for XL. BadRequest.

    A threshold of 0 is none.
    """
    ranges = [(-10.0, 10.0), (0, SCALE_MAX), (-0.99, 0.99)]
    return settings("apg", text, "0,15,-0.5", ranges, 15.0, -0.5)


def parse_dynamic_thresholding(text: str) -> list[float]:
    """The guidance scale to mimic, and the percentile as a fraction, 1 by default. BadRequest."""
    ranges = [(0, SCALE_MAX), (0.5, 1.0)]
    return settings("dynamic-thresholding", text, "7,0.995", ranges, 1.0)


def parse_freeu(text: str) -> list[float]:
    """b1, b2, s1 and s2 of FreeU, and its version, 2 by default. BadRequest."""
    values = settings("freeu", text, "1.3,1.4,0.9,0.2", [(0, 10.0)] * 4 + [(1, 2)], 2.0)
    if values[4] not in (1, 2):
        raise BadRequest(f"freeu has the versions 1 and 2, got {values[4]:g}")
    return values
