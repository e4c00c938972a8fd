"""Schedules: a number of steps → steps + 1 levels, from the noisiest to ratio 0."""

import math
from collections.abc import Callable

from txt2img.diffusion.levels import Diffusion, Level, Process
from txt2img.errors import BadRequest

Schedule = Callable[[Process, int], list[Level]]


def append_zero(levels: list[Level]) -> list[Level]:
    """Append the clean picture, ratio 0, as k-diffusion's append_zero does."""
    return [*levels, Level(0.0, levels[0].curve)]


def linear(process: Process, steps: int) -> list[Level]:
    """Equal steps of time from the first table entry to the last, fractional as in k-diffusion."""
    last = process.steps - 1
    return append_zero([process.entry(last - last * i / max(steps - 1, 1)) for i in range(steps)])


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

    On a diffusion the steps start at its noisiest entry and keep its curve.
    """
    top = process.entry(process.steps - 1)
    start = Level(top.ratio / shift, "flow").sigma
    sigmas = [start * (1 - i / steps) for i in range(steps)]
    ratios = [shift * sigma / (1 - sigma) if sigma < 1 else math.inf for sigma in sigmas]
    return append_zero([Level(ratio, top.curve) for ratio in ratios])


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "leading": leading,
    "trailing": trailing,
    "karras": karras,
    "exponential": exponential,
    "flow": flow,
}
