"""From noise to a picture, one state a step: pick a clean picture to aim at, move a level down.

x always is alpha · x0 + sigma · noise, what a network sees. Levels fall and end at ratio 0; they
may start at pure noise (ratio inf), where every formula here has its finite limit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import Diffusion, Flow, Level, Process, betas
from txt2img.errors import BadRequest

# The standard noise (B, C, H, W), float32, of a step from one level to the next: fresh at each
# call, or the increment of one path (brownian.py).
Noise = Callable[[Level, Level], Tensor]


@dataclass(frozen=True)
class State:
    """After `step` steps (1, 2, …): the sample and the clean picture that was seen in it."""

    step: int
    x: Tensor  # (B, C, H, W)
    x0: Tensor  # (B, C, H, W)


class Sampler(Protocol):
    """What every entry of SAMPLERS is; `eta` is the share of fresh noise, 0 to 1."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Sequence[Level],
        noise: Noise,
        *,
        eta: float = ...,
    ) -> Iterator[State]:
        """The states from x at levels[0] down, one for each pair of levels."""


def pairs(levels: Sequence[Level]) -> Iterator[tuple[int, tuple[Level, Level]]]:
    """(step, (level, next level)), the steps counted from 1."""
    return enumerate(pairwise(levels), start=1)


def move(
    x: Tensor, aim: Tensor, a: Level, b: Level, fresh: float = 0.0, noise: Noise | None = None
) -> Tensor:
    """Take x from level a to b towards aim, with `fresh` of b's noise drawn anew."""
    keep = math.sqrt(b.sigma**2 - fresh**2) / a.sigma
    x = (keep * x).add_(aim, alpha=b.alpha - keep * a.alpha)
    return x + fresh * noise(a, b) if fresh and noise else x


def ancestral(a: Level, b: Level, eta: float) -> float:
    """How much of b's noise a stochastic step draws anew (Song et al. 2020, DDIM, equation 16).

    Between eta 0 and 1 this is DDIM's share; k-diffusion's SDE solvers then take another.
    """
    if not eta:
        return 0.0
    kept = a.alpha * b.sigma / (b.alpha * a.sigma)
    return eta * b.sigma * math.sqrt(max(1 - kept**2, 0.0))


def gap(a: Level, b: Level) -> float:
    """The step from a to b in half the log of the signal-to-noise ratio, inf at either end."""
    return b.half_log_snr - a.half_log_snr


def euler(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 0.0
) -> Iterator[State]:
    """Euler, DDIM and rectified flow at eta 0, Euler ancestral and DDPM at eta 1.

    Ho et al. 2020 (DDPM, the small variance), Song et al. 2020 (DDIM), Karras et al. 2022 (Euler).
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        x = move(x, x0, a, b, ancestral(a, b, eta), noise)
        yield State(step, x, x0)


def heun(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Heun's second order, two looks a step (Karras et al. 2022, Algorithm 1).

    The mean of both slopes is one Euler step to an aim beyond x0 by its change. The first step
    from pure noise of a diffusion, whose line there is endless, and the last are Euler's.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        aim, beyond = x0, move(x, x0, a, b)
        if b.sigma and math.isfinite(a.line):
            aim = x0 + (denoise(beyond, b) - x0) * a.line / (2 * b.line)
            beyond = move(x, aim, a, b)
        x = beyond
        yield State(step, x, x0)


def lms(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Linear multistep: Adams and Bashforth's method on uneven steps (Zhang and Chen 2022, ρAB).

    The order is 3, as if diffusers' step() were given order=3: 4 diverges on short flow schedules.
    """
    past: list[tuple[float, Tensor]] = []  # where on the line, and the slope there; newest first
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        if math.isfinite(a.line):
            slope = (x / a.scale - x0) / a.line
            past = [(a.line, slope), *past[:2]]
            parts = adams([at for at, _ in past], b.line)
            for part, (_, before) in zip(parts[1:], past[1:], strict=True):
                aim = aim + (a.line * part) * (slope - before)
        x = move(x, aim, a, b)
        yield State(step, x, x0)


def adams(places: Sequence[float], end: float) -> list[float]:
    """The weight of the slope at each place in the mean slope from places[0] to end.

    It integrates Lagrange's polynomials by Gauss's rule of two nodes, exact for these.
    """
    middle, half = (places[0] + end) / 2, (end - places[0]) / 2
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [
        sum(
            math.prod((node - other) / (place - other) for other in places if other != place)
            for node in nodes
        )
        / 2
        for place in places
    ]


def ahead(x0: Tensor, x0_last: Tensor | None, h: float, h_last: float) -> Tensor:
    """The aim of a second-order step: beyond x0 by half its last change, scaled to the new gap.

    It is x0 itself where either gap has no end: after pure noise, and before the clean picture.
    """
    if x0_last is None or math.isinf(h) or math.isinf(h_last):
        return x0
    return x0 + (x0 - x0_last) * (h / (2 * h_last))


def dpmpp_2m(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 0.0
) -> Iterator[State]:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2); SDE-DPM-Solver++ at eta 1."""
    x0_last, h_last = None, math.inf
    for step, (a, b) in pairs(levels):
        x0, h = denoise(x, a), gap(a, b)
        aim = ahead(x0, x0_last, h, h_last)
        x = move(x, aim, a, b, ancestral(a, b, eta), noise)
        x0_last, h_last = x0, h
        yield State(step, x, x0)


def dpmpp_sde(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[State]:
    """DPM-Solver++(2S) (Lu et al. 2022, Algorithm 1) as an SDE, two looks a step.

    After k-diffusion's sample_dpmpp_sde. The last step, and the first from pure noise, have no
    halfway and are Euler's.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        if b.sigma and math.isfinite(a.ratio):
            x = halfway(denoise, x, x0, a, b, eta, noise)
        else:
            x = move(x, x0, a, b, ancestral(a, b, eta), noise)
        yield State(step, x, x0)


def halfway(
    denoise: Denoise, x: Tensor, x0: Tensor, a: Level, b: Level, eta: float, noise: Noise
) -> Tensor:
    """x moved from a to b towards what is seen halfway in half_log_snr.

    Half the way is gone first with the first half of the noise of the whole: one Brownian path,
    which keeps the spread of pictures to second order. Noise drawn apart for both narrows it.
    """
    half = Level(math.sqrt(a.ratio * b.ratio), a.curve)
    aim = denoise(move(x, x0, a, half, ancestral(a, half, eta), noise), half)
    return move(x, aim, a, b, ancestral(a, b, eta), noise)


def dpmpp_2s_ancestral(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[State]:
    """DPM-Solver++(2S) (Lu et al. 2022, Algorithm 1), ancestral; two evaluations a step.

    After k-diffusion's sample_dpmpp_2s_ancestral: the solver goes, by way of a level halfway, to
    the ratio that is left before fresh noise is added. The last step, and the first from pure
    noise, have no halfway and are Euler's.
    """
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        fresh = ancestral(a, b, eta)
        down = math.sqrt(b.sigma**2 - fresh**2) / b.alpha
        if down and math.isfinite(a.ratio):
            half = Level(math.sqrt(a.ratio * down), a.curve)
            aim = denoise(move(x, x0, a, half), half)
        x = move(x, aim, a, b, fresh, noise)
        yield State(step, x, x0)


def unipc(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """UniPC of order 2, bh2 (Zhao et al. 2023): 2M's steps, each gone again with the next look."""
    again: Callable[[Tensor], Tensor] | None = None
    x0_last, h_last = None, math.inf
    for step, (a, b) in pairs(levels):
        x0, h = denoise(x, a), gap(a, b)
        x = again(x0) if again else x
        again = partial(corrected, x, a, b, x0, x0_last, h_last)
        x = move(x, ahead(x0, x0_last, h, h_last), a, b)
        x0_last, h_last = x0, h
        yield State(step, x, x0)


def corrected(
    x: Tensor,
    a: Level,
    b: Level,
    x0: Tensor,
    x0_last: Tensor | None,
    h_last: float,
    x0_next: Tensor,
) -> Tensor:
    """x moved from a to b, where x0_next was seen (Zhao et al. 2023, UniC of order 2, B2)."""
    if x0_last is None:
        return move(x, (x0 + x0_next) / 2, a, b)
    h = gap(a, b)
    grown = -math.expm1(-h)
    first = 1 / grown - 1 / h
    second = 1 / grown - 2 * first / h
    before = (first - second) * h / (h + h_last)
    change = (x0 - x0_last) * (before * h / h_last) + (x0_next - x0) * (first - before)
    return move(x, x0 + change, a, b)


def lcm(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Multistep sampling of latent consistency models (Luo et al. 2023): all noise is fresh.

    The paper's c_skip and c_out are left at 0 and 1, which they are to 0.3 % from time 1 up.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        x = move(x, x0, a, b, b.sigma, noise)
        yield State(step, x, x0)


def tcd(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.3,
    clock: Process | None = None,
) -> Iterator[State]:
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, §4.3).

    Each step goes to 1 − eta of the next level's time on `clock`, and back to it by fresh noise;
    eta, the paper's gamma, is 0 for DDIM and 1 for LCM. Without a clock times are the curve's own.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        process = clock or usual(b.curve)
        # Times are those of a table: whole, as in training.
        early = process.level(math.floor((1 - eta) * process.time(b))) if b.sigma and eta else b
        kept = b.alpha / early.alpha
        x = kept * move(x, x0, a, early)
        if early != b:
            x = x + math.sqrt(max(b.sigma**2 - (kept * early.sigma) ** 2, 0.0)) * noise(a, b)
        yield State(step, x, x0)


@cache
def usual(curve: str) -> Process:
    """The process that most models on a curve were trained with."""
    if curve == "flow":
        return Flow()
    return Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))


ETA_SAMPLERS: dict[str, Sampler] = {
    "ddpm": partial(euler, eta=1.0),
    "ddim": euler,
    "euler": euler,
    "euler_a": partial(euler, eta=1.0),
    "dpm++2m": dpmpp_2m,
    "dpm++2m_sde": partial(dpmpp_2m, eta=1.0),
    "dpm++sde": dpmpp_sde,
    "dpm++2s_a": dpmpp_2s_ancestral,
    "tcd": tcd,
}


def without_eta(
    sampler: Callable[[Denoise, Tensor, Sequence[Level], Noise], Iterator[State]],
) -> Sampler:
    """A sampler whose noise is not for the user to choose; raises BadRequest for any eta but 0."""

    def start(
        denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, *, eta: float = 0.0
    ) -> Iterator[State]:
        """The sampler's states."""
        if eta:
            raise BadRequest(
                f"Got eta {eta:g}; the samplers that take it: {', '.join(ETA_SAMPLERS)}."
            )
        return sampler(denoise, x, levels, noise)

    return start


SAMPLERS: dict[str, Sampler] = ETA_SAMPLERS | {
    "heun": without_eta(heun),
    "lms": without_eta(lms),
    "unipc": without_eta(unipc),
    "lcm": without_eta(lcm),
}


def sampler_on(name: str, clock: Process | None) -> Sampler:
    """The sampler of that name for a model whose times are `clock`'s."""
    return partial(tcd, clock=clock) if name == "tcd" else SAMPLERS[name]
