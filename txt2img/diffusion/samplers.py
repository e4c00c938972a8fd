"""Samplers, from noise to a picture: each step picks a clean picture to aim at, moves a level down.

x is always alpha · x0 + sigma · noise, what a network sees. Levels fall and end at ratio 0; they
may start at pure noise (ratio inf), where every formula here has its finite limit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Protocol

from torch import Tensor

from txt2img.diffusion import dpm_solver, multistep, singlestep
from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import (
    Diffusion,
    Flow,
    Level,
    Noise,
    Process,
    Share,
    State,
    ancestral,
    betas,
    flow_share,
    gap,
    move,
    pairs,
    sde_share,
)
from txt2img.errors import BadRequest


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


ETA_SAMPLERS: dict[str, Sampler] = {
    "ddpm": partial(euler, eta=1.0),
    "ddim": euler,
    "euler": euler,
    "euler_a": partial(euler, eta=1.0),
    "dpm++2m": dpmpp_2m,
    "dpm++2m_sde": partial(dpmpp_2m, eta=1.0),
    "dpm++2m_sde_heun": partial(multistep.exponential, eta=1.0, order=2),
    "dpm++3m_sde": partial(multistep.exponential, eta=1.0),
    "dpm++sde": dpmpp_sde,
    "dpm++2s_a": dpmpp_2s_ancestral,
    "dpm2_a": partial(singlestep.dpm2, eta=1.0),
    "dpm_fast": dpm_solver.dpm_fast,
    "dpm_adaptive": dpm_solver.dpm_adaptive,
    "res_multistep_a": partial(multistep.exponential, eta=1.0, order=2, on_line=True),
    "euler_a_cfg++": partial(singlestep.euler_cfg_pp, eta=1.0),
    "ddim_cfg++": singlestep.euler_cfg_pp,
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
    "heun": without_eta(singlestep.heun),
    "lms": without_eta(multistep.lms),
    "unipc": without_eta(unipc),
    "lcm": without_eta(lcm),
    "dpm++3m": without_eta(multistep.exponential),
    "dpm2": without_eta(singlestep.dpm2),
    "plms": without_eta(multistep.plms),
    "ipndm": without_eta(multistep.ipndm),
    "ipndm_v": without_eta(multistep.ipndm_v),
    "deis": without_eta(multistep.deis),
    "res_multistep": without_eta(partial(multistep.exponential, order=2, on_line=True)),
    "er_sde": without_eta(singlestep.er_sde),
    "restart": without_eta(singlestep.restart),
    "euler_cfg++": without_eta(singlestep.euler_cfg_pp),
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


# ComfyUI's SDE solvers take a flow's pure noise for a level just below it
# (offset_first_sigma_for_snr).
FINITE = {("comfyui", name) for name in (*SDE_SHARES, "dpm++sde", "er_sde")}
NEARLY_PURE = 9999.0  # the ratio at sigma 0.9999


def from_finite(sampler: Sampler, shift: float) -> Sampler:
    """A sampler that begins just below a flow's pure noise, with the same x."""

    def start(
        denoise: Denoise, x: Tensor, levels: Sequence[Level], noise: Noise, **options: Any
    ) -> Iterator[State]:
        """Sample from the first level, or from the one near it."""
        first = levels[0]
        if first.curve == "flow" and math.isinf(first.ratio):
            first = Level(shift * NEARLY_PURE, "flow")
        return sampler(denoise, x, [first, *levels[1:]], noise, **options)

    return start


def sampler_for(name: str, clock: Process | None, program: str = "") -> Sampler:
    """The sampler of that name, for a model trained on `clock`'s times, as a program has it."""
    if name == "tcd":
        return partial(tcd, clock=clock)
    variant = VARIANTS.get(program, {}).get(name)
    sampler = partial(SAMPLERS[name], **variant) if variant else SAMPLERS[name]
    shift = clock.shift if isinstance(clock, Flow) else None
    return from_finite(sampler, shift or 1.0) if (program, name) in FINITE else sampler
