"""Samplers, from noise to a picture: each step picks a clean picture to aim at, moves a level down.

x is always alpha · x0 + sigma · noise, what a network sees. Levels fall and end at ratio 0; they
may start at pure noise (ratio inf), where every formula here has its finite limit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import Diffusion, Flow, Level, Process, betas
from txt2img.errors import BadRequest

# Standard noise (B, C, H, W), float32, of a step from one level to the next: fresh at each call,
# or a scaled increment of one Brownian path (brownian.py).
Noise = Callable[[Level, Level], Tensor]


@dataclass(frozen=True)
class State:
    """The sample after `step` steps (1, 2, …), and the clean picture last predicted from it."""

    step: int
    x: Tensor  # (B, C, H, W)
    x0: Tensor  # (B, C, H, W)


class Sampler(Protocol):
    """Signature of every entry of SAMPLERS; `eta` is the share of fresh noise, 0 to 1."""

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Sequence[Level],
        noise: Noise,
        *,
        eta: float = ...,
    ) -> Iterator[State]:
        """States from x at levels[0] down, one for each pair of levels."""


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
    """Sigma of the noise that a stochastic step to b draws anew (Song et al. 2020, DDIM, eq. 16).

    Between eta 0 and 1 this is DDIM's; k-diffusion's SDE solvers scale with eta in another way.
    """
    if not eta:
        return 0.0
    ratio = a.alpha * b.sigma / (b.alpha * a.sigma)
    return eta * b.sigma * math.sqrt(max(1 - ratio**2, 0.0))


Share = Callable[[Level, Level, float], float]  # the fresh sigma of a step from a to b, for an eta


def sde_share(a: Level, b: Level, eta: float) -> float:
    """Fresh sigma of k-diffusion's DPM++ 2M and 3M SDE: between eta 0 and 1 more than DDIM's."""
    if not eta or not b.sigma:
        return 0.0
    return b.sigma * math.sqrt(-math.expm1(-2 * eta * gap(a, b)))


def flow_share(a: Level, b: Level, eta: float) -> float:
    """Fresh sigma of ComfyUI's ancestral steps of a flow (sample_euler_ancestral_RF), else DDIM's.

    The step goes down to sigma_b · (1 + (sigma_b / sigma_a - 1) · eta).
    """
    if b.curve == "diffusion" or not eta or not b.sigma:
        return ancestral(a, b, eta)
    down = b.sigma * (1 + (b.sigma / a.sigma - 1) * eta)
    return math.sqrt(max(b.sigma**2 - (down * b.alpha / (1 - down)) ** 2, 0.0))


def level_left(b: Level, fresh: float) -> Level:
    """The level that an ancestral step goes down to, before `fresh` noise takes it up to b."""
    return Level(math.sqrt(b.sigma**2 - fresh**2) / b.alpha, b.curve) if fresh else b


def gap(a: Level, b: Level) -> float:
    """Step size from a to b in half_log_snr, the paper's h; inf at either end."""
    return b.half_log_snr - a.half_log_snr


def euler(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.0,
    share: Share = ancestral,
) -> Iterator[State]:
    """Euler, DDIM and rectified flow at eta 0, Euler ancestral and DDPM at eta 1.

    Ho et al. 2020 (DDPM, the small variance), Song et al. 2020 (DDIM), Karras et al. 2022 (Euler).
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        x = move(x, x0, a, b, share(a, b, eta), noise)
        yield State(step, x, x0)


def heun(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Heun's second-order method, two evaluations a step (Karras et al. 2022, Algorithm 1).

    The mean of both slopes is one Euler step, whose aim is x0 moved on by its scaled change. The
    last step, and the first from pure noise of a diffusion, where `line` is infinite, are Euler's.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        x = move(x, heun_aim(denoise, x, x0, a, b), a, b)
        yield State(step, x, x0)


def heun_aim(denoise: Denoise, x: Tensor, x0: Tensor, a: Level, b: Level) -> Tensor:
    """Aim of Heun's step, by a second look at b; x0 where there is none."""
    if not b.sigma or math.isinf(a.line):
        return x0
    return x0 + (denoise(move(x, x0, a, b), b) - x0) * a.line / (2 * b.line)


def lms(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Linear multistep: Adams and Bashforth's method on uneven steps (Zhang and Chen 2022, ρAB).

    Of order 3, which diffusers' step() takes as an argument: 4 diverges on short flow schedules.
    """
    return multistep(denoise, x, levels, adams, 3, zero=True)


Weights = Callable[[Sequence[float], float], Sequence[float]]  # slopes' positions, end → weights
Aim = Callable[[Denoise, Tensor, Tensor, Level, Level], Tensor]  # denoise, x, x0, a, b → aim


def multistep(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    weights_of: Weights,
    order: int,
    first: Aim | None = None,
    zero: bool = False,
) -> Iterator[State]:
    """Steps along a weighted sum of the last `order` slopes, newest first, on the levels' line.

    The step from the first slope has the aim `first`; the step to the clean picture is Euler's,
    unless `zero`.
    """
    slopes: list[tuple[float, Tensor]] = []  # where on the line, and the slope there; newest first
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        if math.isfinite(a.line):
            slope = (x / a.scale - x0) / a.line
            slopes = [(a.line, slope), *slopes[: order - 1]]
            if first and len(slopes) == 1:
                aim = first(denoise, x, x0, a, b)
            elif b.sigma or zero:
                weights = weights_of([at for at, _ in slopes], b.line)
                for weight, (_, before) in zip(weights[1:], slopes[1:], strict=True):
                    aim = aim + (a.line * weight) * (slope - before)
                if abs(rest := 1 - sum(weights)) > 1e-9:  # diff-sampler's do not sum to 1
                    aim = aim + (a.line * rest) * slope
        x = move(x, aim, a, b)
        yield State(step, x, x0)


def adams(positions: Sequence[float], end: float) -> list[float]:
    """Weight of the slope at each position in the mean slope from positions[0] to end.

    Integrates Lagrange's polynomials by Gauss's rule of two nodes, which is exact for up to four.
    """
    middle, half = (positions[0] + end) / 2, (end - positions[0]) / 2
    nodes = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [
        sum(
            math.prod((node - other) / (at - other) for other in positions if other != at)
            for node in nodes
        )
        / 2
        for at in positions
    ]


def extrapolated(x0: Tensor, x0_last: Tensor | None, h: float, h_last: float) -> Tensor:
    """Aim of a second-order step: x0 plus half its last change, scaled to the new gap.

    x0 itself where either gap is infinite: after pure noise, and before the clean picture.
    """
    if x0_last is None or math.isinf(h) or math.isinf(h_last):
        return x0
    return x0 + (x0 - x0_last) * (h / (2 * h_last))


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 0.0,
    share: Share = ancestral,
) -> Iterator[State]:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2); SDE-DPM-Solver++ at eta 1."""
    x0_last, h_last = None, math.inf
    for step, (a, b) in pairs(levels):
        x0, h = denoise(x, a), gap(a, b)
        aim = extrapolated(x0, x0_last, h, h_last)
        x = move(x, aim, a, b, share(a, b, eta), noise)
        x0_last, h_last = x0, h
        yield State(step, x, x0)


def dpmpp_sde(
    denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, eta: float = 1.0
) -> Iterator[State]:
    """DPM-Solver++(2S) (Lu et al. 2022, Algorithm 1) as an SDE, two evaluations a
    step.

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
    """Move x from a to b towards the x0 predicted halfway in half_log_snr.

    The half step's noise is the first half of the whole step's: one Brownian path, which keeps the
    spread of pictures to second order. Independent noise for both would narrow it.
    """
    half = Level(math.sqrt(a.ratio * b.ratio), a.curve)
    aim = denoise(move(x, x0, a, half, ancestral(a, half, eta), noise), half)
    return move(x, aim, a, b, ancestral(a, b, eta), noise)


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    levels: Sequence[Level],
    noise: Noise,
    eta: float = 1.0,
    share: Share = ancestral,
) -> Iterator[State]:
    """DPM-Solver++(2S) (Lu et al. 2022, Algorithm 1), ancestral; two evaluations a step.

    After k-diffusion's sample_dpmpp_2s_ancestral: the solver goes, by way of a level halfway, to
    the ratio that is left before fresh noise is added. The last step, and the first from pure
    noise, have no halfway and are Euler's.
    """
    for step, (a, b) in pairs(levels):
        x0 = aim = denoise(x, a)
        fresh = share(a, b, eta)
        down = math.sqrt(b.sigma**2 - fresh**2) / b.alpha
        if down and math.isfinite(a.ratio):
            half = Level(math.sqrt(a.ratio * down), a.curve)
            aim = denoise(move(x, x0, a, half), half)
        x = move(x, aim, a, b, fresh, noise)
        yield State(step, x, x0)


def unipc(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """UniPC of order 2, bh2 (Zhao et al. 2023).

    DPM++ 2M's steps are the predictor; each is corrected when the next x0 arrives.
    """
    correct: Callable[[Tensor], Tensor] | None = None
    x0_last, h_last = None, math.inf
    for step, (a, b) in pairs(levels):
        x0, h = denoise(x, a), gap(a, b)
        x = correct(x0) if correct else x
        correct = partial(unipc_corrected, x, a, b, x0, x0_last, h_last)
        x = move(x, extrapolated(x0, x0_last, h, h_last), a, b)
        x0_last, h_last = x0, h
        yield State(step, x, x0)


def unipc_corrected(
    x: Tensor,
    a: Level,
    b: Level,
    x0: Tensor,
    x0_last: Tensor | None,
    h_last: float,
    x0_next: Tensor,
) -> Tensor:
    """Move x from a to b, given x0_next, predicted at b (Zhao et al. 2023, UniC, order 2, B2)."""
    if x0_last is None:
        return move(x, (x0 + x0_next) / 2, a, b)
    h = gap(a, b)
    growth = -math.expm1(-h)
    first = 1 / growth - 1 / h
    second = 1 / growth - 2 * first / h
    last = (first - second) * h / (h + h_last)
    change = (x0 - x0_last) * (last * h / h_last) + (x0_next - x0) * (first - last)
    return move(x, x0 + change, a, b)


def lcm(denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise) -> Iterator[State]:
    """Multistep sampling of latent consistency models (Luo et al. 2023): all noise is fresh.

    c_skip and c_out are taken as 0 and 1, which they are to 0.3 % from time 1 up.
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

    Each step overshoots to 1 − eta of the next level's time on `clock`, and fresh noise takes it
    back; eta, the paper's gamma, is 0 for DDIM and 1 for LCM. `clock` defaults to the curve's.
    """
    for step, (a, b) in pairs(levels):
        x0 = denoise(x, a)
        process = clock or default_process(b.curve)
        # Times are whole, as in the training table.
        early = process.level(math.floor((1 - eta) * process.time(b))) if b.sigma and eta else b
        scale = b.alpha / early.alpha
        x = scale * move(x, x0, a, early)
        if early != b:
            x = x + math.sqrt(max(b.sigma**2 - (scale * early.sigma) ** 2, 0.0)) * noise(a, b)
        yield State(step, x, x0)


@cache
def default_process(curve: str) -> Process:
    """The noise process that most models on a curve were trained with."""
    if curve == "flow":
        return Flow()
    return Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))


def later(module: str, function: str, **options: Any) -> Sampler:
    """A sampler of another file, which is imported when it starts."""

    def start(
        denoise: Denoise,
        x: Tensor,
        levels: Sequence[Level],
        noise: Noise,
        *,
        eta: float | None = None,
        **more: Any,
    ) -> Iterator[State]:
        """Import it, then sample."""
        sampler = getattr(import_module(f"txt2img.diffusion.{module}"), function)
        given = {} if eta is None else {"eta": eta}
        states: Iterator[State] = sampler(denoise, x, levels, noise, **options | more | given)
        return states

    return start


ETA_SAMPLERS: dict[str, Sampler] = {
    "ddpm": partial(euler, eta=1.0),
    "ddim": euler,
    "euler": euler,
    "euler_a": partial(euler, eta=1.0),
    "dpm++2m": dpmpp_2m,
    "dpm++2m_sde": partial(dpmpp_2m, eta=1.0),
    "dpm++2m_sde_heun": later("multistep", "exponential", eta=1.0, order=2),
    "dpm++3m_sde": later("multistep", "exponential", eta=1.0),
    "dpm++sde": dpmpp_sde,
    "dpm++2s_a": dpmpp_2s_ancestral,
    "dpm2_a": later("singlestep", "dpm2", eta=1.0),
    "dpm_fast": later("dpm_solver", "dpm_fast"),
    "dpm_adaptive": later("dpm_solver", "dpm_adaptive"),
    "res_multistep_a": later("multistep", "exponential", eta=1.0, order=2, on_line=True),
    "euler_a_cfg++": later("singlestep", "euler_cfg_pp", eta=1.0),
    "ddim_cfg++": later("singlestep", "euler_cfg_pp"),
    "tcd": tcd,
}


def without_eta(sampler: Callable[..., Iterator[State]]) -> Sampler:
    """A sampler that takes no eta: raises BadRequest for any but 0."""

    def start(
        denoise: Denoise,
        x: Tensor,
        levels: Sequence[Level],
        noise: Noise,
        *,
        eta: float = 0.0,
        **more: Any,
    ) -> Iterator[State]:
        """Check eta, then sample."""
        if eta:
            raise BadRequest(
                f"eta {eta:g} needs a sampler that takes it: {', '.join(ETA_SAMPLERS)}"
            )
        return sampler(denoise, x, levels, noise, **more)

    return start


SAMPLERS: dict[str, Sampler] = ETA_SAMPLERS | {
    "heun": without_eta(heun),
    "lms": without_eta(lms),
    "unipc": without_eta(unipc),
    "lcm": without_eta(lcm),
    "dpm++3m": without_eta(later("multistep", "exponential")),
    "dpm2": without_eta(later("singlestep", "dpm2")),
    "plms": without_eta(later("multistep", "plms")),
    "ipndm": without_eta(later("multistep", "ipndm")),
    "ipndm_v": without_eta(later("multistep", "ipndm_v")),
    "deis": without_eta(later("multistep", "deis")),
    "res_multistep": without_eta(later("multistep", "exponential", order=2, on_line=True)),
    "er_sde": without_eta(later("singlestep", "er_sde")),
    "restart": without_eta(later("singlestep", "restart")),
    "euler_cfg++": without_eta(later("singlestep", "euler_cfg_pp")),
}

# What programs' samplers do otherwise than ours.
SDE_SHARES = {
    name: {"share": sde_share} for name in ("dpm++2m_sde", "dpm++2m_sde_heun", "dpm++3m_sde")
}
FLOW_SHARES = {name: {"share": flow_share} for name in ("euler_a", "dpm2_a", "dpm++2s_a")}
DPM = ("dpm_fast", "dpm_adaptive")
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "a1111": SDE_SHARES | {name: {"eta": 1.0, "clean": False} for name in DPM},
    "comfyui": SDE_SHARES
    | FLOW_SHARES
    | {name: {"clean": False} for name in DPM}
    | {"ipndm_v": {"as_diff_sampler": True}},
    "diffusers": {"deis": {"clock": math.log, "order": 2}},
}


def sampler_for(name: str, clock: Process | None, program: str = "") -> Sampler:
    """The sampler of that name, for a model trained on `clock`'s times, as a program has it."""
    if name == "tcd":
        return partial(tcd, clock=clock)
    variant = VARIANTS.get(program, {}).get(name)
    return partial(SAMPLERS[name], **variant) if variant else SAMPLERS[name]
