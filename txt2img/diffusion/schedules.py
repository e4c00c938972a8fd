"""Schedules: a number of steps → steps + 1 levels, from the noisiest to ratio 0."""

import math
from collections.abc import Callable

from txt2img.diffusion.levels import Diffusion, Flow, Level, Process
from txt2img.errors import BadRequest

Schedule = Callable[[Process, int], list[Level]]


def append_zero(levels: list[Level]) -> list[Level]:
    """Append the clean picture, ratio 0, as k-diffusion's append_zero does."""
    return [*levels, Level(0.0, levels[0].curve)]


def linear(process: Process, steps: int) -> list[Level]:
    """Equal steps of time from the first table entry to the last, fractional as in k-diffusion.

    The entries of a shifted flow are times too, which are shifted once more: so do Stable
    Diffusion 3's reference, diffusers and ComfyUI (normal).
    """
    last, first = process.steps - 1, 0.0
    if isinstance(process, Flow) and process.shift is not None:
        first = process.entry(0).sigma * process.steps - 1
    gaps = max(steps - 1, 1)
    return append_zero([process.entry(last - (last - first) * i / gaps) for i in range(steps)])


def leading(process: Process, steps: int) -> list[Level]:
    """Whole strides of time that end at entry 1: Stable Diffusion's own, with steps_offset 1.

    The first level is short of the noisiest entry. BadRequest for more steps than entries.
    """
    stride = table_entries(process, steps, "leading") // steps
    return append_zero([process.entry(i * stride + 1) for i in reversed(range(steps))])


def strided(process: Process, steps: int) -> list[Level]:
    """A1111's schedule for DDIM (sd_samplers_timesteps.py): whole strides up to the table's end.

    They stop at entry 1, so that there may be more or fewer than `steps`. BadRequest as leading.
    """
    stride = table_entries(process, steps, "leading") // steps
    top = process.steps - 1
    levels = [process.entry(min(i + 1, top)) for i in reversed(range(0, process.steps, stride))]
    return levels if len(levels) > 1 else append_zero(levels)


def trailing(process: Process, steps: int) -> list[Level]:
    """Rounded strides of time that start at the noisiest entry (Lin et al. 2023, §3.3).

    BadRequest for more steps than entries.
    """
    entries = table_entries(process, steps, "trailing")
    return append_zero(
        [process.entry(round(entries - i * entries / steps) - 1) for i in range(steps)]
    )


def table_entries(process: Process, steps: int, name: str) -> int:
    """Number of table entries; raises BadRequest if it is less than steps."""
    if steps > process.steps:
        raise BadRequest(
            f"schedule {name} allows 1 … {process.steps:,} steps, got {steps:,}; "
            "take fewer, or the schedule linear"
        )
    return process.steps


def karras(process: Process, steps: int, rho: float = 7.0) -> list[Level]:
    """Equal steps of ratio^(1/rho) (Karras et al. 2022, equation 5)."""
    return evenly_spaced(process, steps, lambda ratio: ratio ** (1 / rho), lambda root: root**rho)


def exponential(process: Process, steps: int) -> list[Level]:
    """Equal steps of ln(ratio)."""
    return evenly_spaced(process, steps, math.log, math.exp)


def evenly_spaced(
    process: Process, steps: int, bend: Callable[[float], float], unbend: Callable[[float], float]
) -> list[Level]:
    """Levels from the noisiest entry to the cleanest, evenly spaced after `warp`.

    Warped is sigma on a flow, whose ratio has no end, and the ratio on a diffusion; there pure
    noise, if the table ends in it, is a further level at the start.
    """
    last, head = process.steps - 1, list[Level]()
    if isinstance(process, Diffusion) and math.isinf(process.ratios[-1]):
        head, last = [process.entry(last)], last - 1
    top, low = (bend(process.entry(index).line) for index in (last, 0))
    gaps = max(steps - len(head) - 1, 1)
    points = [unbend(top + (low - top) * i / gaps) for i in range(steps - len(head))]
    if isinstance(process, Diffusion):
        return append_zero([*head, *(Level(ratio, "diffusion") for ratio in points)])
    return append_zero([process.level(sigma * process.time_factor) for sigma in points])


def flow(process: Process, steps: int, shift: float = 3.0) -> list[Level]:
    """Equal steps of a flow's sigma, then the ratio times `shift` (Esser et al. 2024, §5.3.2).

    A flow's own shift comes first. On a diffusion the steps start at its noisiest entry and keep
    its curve.
    """
    if isinstance(process, Flow) and process.shift is not None:
        shift = process.shift
    top = process.entry(process.steps - 1)
    start = Level(top.ratio / shift, "flow").sigma
    sigmas = [start * (1 - i / steps) for i in range(steps)]
    ratios = [shift * sigma / (1 - sigma) if sigma < 1 else math.inf for sigma in sigmas]
    return append_zero([Level(ratio, top.curve) for ratio in ratios])


def linear_mu(
    tokens: int, low: int = 256, high: int = 4096, at_low: float = 0.5, at_high: float = 1.15
) -> float:
    """Logarithm of FLUX.1's shift for a picture of `tokens` patches, a straight line in them."""
    slope = (at_high - at_low) / (high - low)
    return tokens * slope + (at_low - slope * low)


def empirical_mu(tokens: int, steps: int) -> float:
    """Logarithm of FLUX.2's shift, as fitted by its authors to patches and steps.

    Two lines, of 10 and of 200 steps, with a straight way between; above 4300 tokens the latter.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


# Shifts that depend on a picture's tokens and its steps, by the names that families know.
SHIFTS: dict[str, Callable[[int, int], float]] = {
    "linear": lambda tokens, steps: math.exp(linear_mu(tokens)),
    "empirical": lambda tokens, steps: math.exp(empirical_mu(tokens, steps)),
}


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "leading": leading,
    "trailing": trailing,
    "karras": karras,
    "exponential": exponential,
    "flow": flow,
}
