"""Schedules: a number of steps → steps + 1 levels, from the noisiest to ratio 0."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from txt2img.diffusion.beta import beta_quantile
from txt2img.diffusion.levels import Diffusion, Flow, Level, Process, level_at
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


def ddim_uniform(process: Process, steps: int) -> list[Level]:
    """Whole strides up to the table's end and the clean picture, as in A1111 and ComfyUI.

    There may be more or fewer than `steps`. BadRequest as leading.
    """
    stride = table_entries(process, steps, "ddim_uniform") // steps
    return append_zero([process.entry(i) for i in reversed(range(1, process.steps, stride))])


def sgm_uniform(process: Process, steps: int) -> list[Level]:
    """Linear in time with one step more, whose last level goes: Stability AI's, by A1111's name."""
    return append_zero(linear(process, steps + 1)[:-2])


def simple(process: Process, steps: int) -> list[Level]:
    """Every (table / steps)-th entry from the noisiest on, rounded up, as in A1111 and ComfyUI.

    BadRequest for more steps than entries.
    """
    entries = table_entries(process, steps, "simple")
    return append_zero([process.entry(entries - 1 - i * entries // steps) for i in range(steps)])


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


def kl_optimal(process: Process, steps: int) -> list[Level]:
    """Equal steps of the ratio's arctangent (Sabour et al. 2024, theorem 3.1)."""
    top, low = (math.atan(process.entry(i).line) for i in (process.steps - 1, 0))
    gaps = max(steps - 1, 1)
    return at_lines(process, [math.tan(top + (low - top) * i / gaps) for i in range(steps)])


def beta(process: Process, steps: int, whole: bool = False, of_line: bool = False) -> list[Level]:
    """Times at equal quantiles of Beta(0.6, 0.6) (Lee et al. 2024, "Beta Sampling Is All You …").

    ComfyUI's are `whole` and none twice; A1111's and diffusers' quantiles are `of_line`.
    """
    top = process.steps - 1
    if of_line:
        high, low = noisiest_line(process), process.entry(0).line
        shares = [beta_quantile(1 - i / max(steps - 1, 1), 0.6, 0.6) for i in range(steps)]
        return at_lines(process, [low + (high - low) * share for share in shares])
    times = [top * beta_quantile(1 - i / steps, 0.6, 0.6) for i in range(steps)]
    if whole:
        times = list(dict.fromkeys(float(round(time)) for time in times))
    return append_zero([process.entry(time) for time in times])


def linear_quadratic(process: Process, steps: int, threshold: float = 0.025) -> list[Level]:
    """Half of the steps in a line to 1 - `threshold` of the noise, the others in a parabola.

    Polyak et al. 2024, "Movie Gen: A Cast of Media Foundation Models"; as in ComfyUI.
    """
    high, half = noisiest_line(process), steps // 2
    if not half:
        return at_lines(process, [high])
    rest = steps - half
    curve = (half - threshold * steps) / (half * rest**2)
    slope = threshold / half - 2 * curve * half
    done = [i * threshold / half for i in range(half)]
    done += [curve * i**2 + slope * i + curve * half**2 for i in range(half, steps)]
    return at_lines(process, [high * (1 - part) for part in done])


# The published levels of ten steps (Sabour et al. 2024, "Align Your Steps"), and ComfyUI's.
AYS = {
    "1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "XL": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
AYS_COMFYUI = {
    "1": (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    ),
    "XL": (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    ),
}


def align_your_steps(
    process: Process, steps: int, table: Sequence[float] = AYS["1"], further: int = 1
) -> list[Level]:
    """Levels that were optimised for Stable Diffusion 1 or XL, log-linear between the published.

    The last of steps + `further` is replaced by the clean picture; A1111 adds that. BadRequest for
    a flow.
    """
    if isinstance(process, Flow):
        raise BadRequest(
            "the schedule align_your_steps has levels of Stable Diffusion 1 and XL; choose another"
        )
    count, gaps = steps + further, len(table) - 1
    ratios = []
    for i in range(steps):
        place = i * gaps / max(count - 1, 1)
        low = min(int(place), gaps - 1)
        part = place - low
        ratios.append(table[low] ** (1 - part) * table[low + 1] ** part)
    return append_zero([Level(ratio, "diffusion") for ratio in ratios])


def noisiest_line(process: Process) -> float:
    """Where the noisiest finite entry is on the line."""
    last = process.entry(process.steps - 1).line
    return last if math.isfinite(last) else process.entry(process.steps - 2).line


def at_lines(process: Process, lines: Sequence[float]) -> list[Level]:
    """Levels at places on the line, the first of them the noisiest entry, and the clean picture."""
    top = process.entry(process.steps - 1)
    return append_zero([top, *(level_at(line, top.curve) for line in lines[1:])])


def given(process: Process, sigmas: Sequence[float]) -> list[Level]:
    """Levels at given sigmas: ratios of a diffusion, 0 … 1 on a flow. BadRequest for more there."""
    curve = process.entry(0).curve
    if curve == "flow" and sigmas[0] > 1:
        raise BadRequest(f"sigmas of this model are 0 … 1, 1 pure noise; got {sigmas[0]:g}")
    return [level_at(sigma, curve) for sigma in sigmas]


def schedule_for(name: str, program: str = "", xl: bool = False) -> Schedule:
    """The schedule of that name as a program has it, for Stable Diffusion XL or another model."""
    if name == "beta" and program:
        return partial(beta, whole=program == "comfyui", of_line=program != "comfyui")
    if name == "align_your_steps":
        table = (AYS_COMFYUI if program == "comfyui" else AYS)["XL" if xl else "1"]
        return partial(align_your_steps, table=table, further=int(program != "a1111"))
    if name == "kl_optimal" and program == "a1111":
        # Its last step, from 0.03 at most, ends in a clean picture here.
        return lambda process, steps: append_zero(kl_optimal(process, steps + 1)[:-2])
    return SCHEDULES[name]


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "leading": leading,
    "trailing": trailing,
    "karras": karras,
    "exponential": exponential,
    "flow": flow,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
    "linear_quadratic": linear_quadratic,
}
