"""Samplers against k-diffusion's own, and against the formulas of ComfyUI and A1111, in float64.

k-diffusion keeps x / alpha on a diffusion; ComfyUI's x on a flow is ours.
"""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.diffusion.test_samplers import DENOISE, PIXELS, SD, difference, exact
from tests.support import k_diffusion
from txt2img.diffusion.levels import Level, level_at
from txt2img.diffusion.samplers import sampler_for
from txt2img.diffusion.schedules import SCHEDULES

Evaluate = Callable[[Tensor, float], Tensor]
FRESH = [n.double() for n in torch.randn(80, *PIXELS, generator=torch.Generator().manual_seed(3))]


def evaluate_of(curve: str) -> Evaluate:
    """The denoiser as peers call it: their x and sigma → x0."""

    def evaluate(y: Tensor, sigma: Tensor | float, **_: object) -> Tensor:
        at = float(sigma.flatten()[0]) if isinstance(sigma, Tensor) else sigma
        level = level_at(at, curve)
        return DENOISE(y * level.scale, level)

    return evaluate


def drawn() -> Callable[..., Tensor]:
    """Noise of steps, the same for both sides."""
    used = iter(FRESH[1:])
    return lambda *_: next(used)


def ours(name: str, levels: list[Level], program: str = "", **more: float) -> Tensor:
    """The last x of ours, from the first noise."""
    start = levels[0].scale * levels[0].line * FRESH[0]
    *_, last = sampler_for(name, None, program)(DENOISE, start, levels, drawn(), **more)
    return last.x


FIGURES: dict[tuple[str, str], float] = {}


def missed(peer: str, name: str, got: Tensor, want: Tensor) -> float:
    """How far ours is from a peer's, relative; the largest of each is a figure of the table."""
    figure = difference(got, want)
    FIGURES[name, peer] = max(figure, FIGURES.get((name, peer), 0.0))
    return figure


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Print the figures as a table, which pytest -s shows."""
    yield
    lines = [f"{name:20} {peer:12} {figure:.0e}" for (name, peer), figure in FIGURES.items()]
    sys.stdout.write("\n".join(["", "sampler              peer         difference", *lines, ""]))


KARRAS = SCHEDULES["karras"](SD, 12)
SIGMAS = [level.ratio for level in KARRAS]
FLOW = [level_at(sigma, "flow") for sigma in np.linspace(1, 0, 13).tolist()]


K_DIFFUSION = [
    ("dpm2", "sample_dpm_2", {}),
    ("dpm2_a", "sample_dpm_2_ancestral", {"eta": 1.0}),
    ("dpm2_a", "sample_dpm_2_ancestral", {"eta": 0.4}),
    ("dpm++2s_a", "sample_dpmpp_2s_ancestral", {"eta": 0.4}),
    ("dpm++2m", "sample_dpmpp_2m", {}),
    ("dpm++2m_sde", "sample_dpmpp_2m_sde", {"eta": 0.4}),
    ("dpm++2m_sde_heun", "sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "heun"}),
    ("dpm++2m_sde_heun", "sample_dpmpp_2m_sde", {"eta": 0.4, "solver_type": "heun"}),
    ("dpm++3m", "sample_dpmpp_3m_sde", {"eta": 0.0}),
    ("dpm++3m_sde", "sample_dpmpp_3m_sde", {"eta": 1.0}),
    ("dpm++3m_sde", "sample_dpmpp_3m_sde", {"eta": 0.4}),
    ("euler", "sample_euler", {}),
    ("euler_a", "sample_euler_ancestral", {"eta": 0.4}),
    ("heun", "sample_heun", {}),
]


@pytest.mark.parametrize(("name", "function", "more"), K_DIFFUSION)
def test_samplers_equal_k_diffusion(name, function, more):
    sample = getattr(k_diffusion.sampling(), function)
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    noise = {} if more.get("eta") is None else {"noise_sampler": drawn()}
    want = sample(
        evaluate_of("diffusion"), SIGMAS[0] * FRESH[0], sigmas, disable=True, **noise, **more
    )
    own = {"eta": more["eta"]} if more.get("eta") else {}
    assert missed("k-diffusion", name, ours(name, KARRAS, "a1111", **own), want) < 1e-12


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7, 12, 20])
def test_dpm_fast_equals_k_diffusion(steps, eta):
    """Its times are float32; of one step it makes nothing at all, where ours is Euler's."""
    sampling = k_diffusion.sampling()
    levels = SCHEDULES["karras"](SD, steps)
    if steps == 1:
        torch.testing.assert_close(ours("dpm_fast", levels), ours("euler", levels))
        return
    ends = levels[-2].ratio, levels[0].ratio
    start = ends[1] * FRESH[0]
    want = sampling.sample_dpm_fast(
        evaluate_of("diffusion"), start, *ends, steps, disable=True, eta=eta, noise_sampler=drawn()
    )
    assert (
        missed("k-diffusion", "dpm_fast", ours("dpm_fast", levels, "comfyui", eta=eta), want) < 1e-5
    )


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_adaptive_equals_k_diffusion(eta):
    sampling = k_diffusion.sampling()
    ends = SIGMAS[-2], SIGMAS[0]
    want, info = sampling.sample_dpm_adaptive(
        evaluate_of("diffusion"),
        ends[1] * FRESH[0],
        *ends,
        disable=True,
        eta=eta,
        noise_sampler=drawn(),
        return_info=True,
    )
    assert info["steps"] > 8
    assert (
        missed(
            "k-diffusion", "dpm_adaptive", ours("dpm_adaptive", KARRAS, "comfyui", eta=eta), want
        )
        < 1e-5
    )
    a1111 = ours("dpm_adaptive", KARRAS, "a1111")
    assert (difference(a1111, want) < 1e-5) is (eta == 1.0)


def slopes(evaluate: Evaluate, x: Tensor, sigmas: list[float], step) -> Tensor:
    """A loop of ComfyUI's slope methods: `step(i, slopes newest first)` gives x's change."""
    found: list[Tensor] = []
    for i, (a, b) in enumerate(pairwise(sigmas)):
        x0 = evaluate(x, a)
        found.insert(0, (x - x0) / a)
        x = x0 if b == 0 else x + step(i, found)
    return x


def comfy_ipndm(sigmas: list[float], i: int, d: list[Tensor]) -> Tensor:
    """Adams and Bashforth's weights, of order 4 at most."""
    table = [[1], [3, -1], [23, -16, 5], [55, -59, 37, -9]][min(i, 3)]
    total = sum(w * s for w, s in zip(table, d, strict=False)) / sum(table)
    return (sigmas[i + 1] - sigmas[i]) * total


def comfy_ipndm_v(t: list[float], i: int, d: list[Tensor]) -> Tensor:
    """The weights that ComfyUI has from diff-sampler, as they are."""
    h = t[i + 1] - t[i]
    if i == 0:
        return h * d[0]
    h1 = t[i] - t[i - 1]
    if i == 1:
        return h * ((2 + h / h1) / 2 * d[0] - h / h1 / 2 * d[1])
    h2 = t[i - 1] - t[i - 2]
    p = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    c1, c2, c3 = (2 + h / h1) / 2 + p, -(h / h1) / 2 - (1 + h1 / h2) * p, p * h1 / h2
    if i == 2:
        return h * (c1 * d[0] + c2 * d[1] + c3 * d[2])
    h3 = t[i - 2] - t[i - 3]
    q = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
    q *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
    u = h1 * (h1 + h2) / (h2 * (h2 + h3))
    c1, c2 = c1 + q, c2 - (1 + h1 / h2 + u) * q
    c3, c4 = c3 + (h1 / h2 + u * (1 + h2 / h3)) * q, -q * u * h1 / h2
    return h * (c1 * d[0] + c2 * d[1] + c3 * d[2] + c4 * d[3])


def comfy_deis(sigmas: list[float], i: int, d: list[Tensor]) -> Tensor:
    """Its mode "tab": polynomials in a VP process's time; here the integral is a finer sum."""
    a, b = sigmas[i : i + 2]
    if i == 0:
        return (b - a) * d[0]
    low, high, eps = math.log1p(0.002**2), math.log1p(80.0**2), 1e-3
    growth = 2 * (low / eps - high) / (eps - 1)
    first = high - growth / 2

    def time(sigma: np.ndarray) -> np.ndarray:
        return (np.sqrt(first**2 + 2 * growth * np.log1p(sigma**2)) - first) / growth

    known = [float(time(np.array(sigmas[i - k]))) for k in range(min(i + 1, 3))]
    taus = np.linspace(known[0], float(time(np.array(b))), 200_001)
    at = np.sqrt(np.expm1(growth * taus**2 / 2 + first * taus))
    total = torch.zeros(PIXELS, dtype=torch.float64)
    for j, own in enumerate(known):
        others = [other for k, other in enumerate(known) if k != j]
        poly = np.prod([(taus - other) / (own - other) for other in others], axis=0)
        total += float(np.trapezoid(poly, at)) * d[j]
    return total


@pytest.mark.parametrize("curve", ["diffusion", "flow"])
@pytest.mark.parametrize("name", ["ipndm", "ipndm_v", "deis"])
def test_slope_methods_equal_comfyui(name, curve):
    levels = KARRAS if curve == "diffusion" else FLOW
    sigmas = [level.line for level in levels]
    formula = {"ipndm": comfy_ipndm, "ipndm_v": comfy_ipndm_v, "deis": comfy_deis}[name]
    step = partial(formula, sigmas)
    want = slopes(evaluate_of(curve), sigmas[0] * FRESH[0], sigmas, step)
    assert missed("ComfyUI", name, ours(name, levels, "comfyui"), want) < (
        1e-8 if name == "deis" else 1e-12
    )


def comfy_res(sigmas: list[float], evaluate: Evaluate, x: Tensor, eta: float) -> Tensor:
    """ComfyUI's res_multistep."""
    noise, last = drawn(), None
    for i, (a, b) in enumerate(pairwise(sigmas)):
        x0 = evaluate(x, a)
        up = min(b, eta * math.sqrt(b**2 * (a**2 - b**2) / a**2))
        down = math.sqrt(b**2 - up**2)
        if down == 0 or last is None:
            x = x + (x - x0) / a * (down - a)
        else:
            x0_last, down_last = last
            h = math.log(a / down)
            c2 = (math.log(down_last) - math.log(sigmas[i - 1])) / h
            phi_1 = math.expm1(-h) / -h
            phi_2 = (phi_1 - 1) / -h
            x = math.exp(-h) * x + h * ((phi_1 - phi_2 / c2) * x0 + phi_2 / c2 * x0_last)
        x = x + noise() * up if b and eta else x
        last = x0, down
    return x


@pytest.mark.parametrize(
    ("name", "eta", "curve"),
    [
        ("res_multistep", 0.0, "diffusion"),
        ("res_multistep", 0.0, "flow"),
        ("res_multistep_a", 1.0, "diffusion"),
        ("res_multistep_a", 0.5, "diffusion"),
    ],
)
def test_res_multistep_equals_comfyui(name, eta, curve):
    levels = KARRAS if curve == "diffusion" else FLOW
    sigmas = [level.line for level in levels]
    want = comfy_res(sigmas, evaluate_of(curve), sigmas[0] * FRESH[0], eta)
    more = {"eta": eta} if eta else {}
    assert missed("ComfyUI", name, ours(name, levels, "comfyui", **more), want) < 1e-12


def comfy_er_sde(levels: list[Level], evaluate: Evaluate, x: Tensor) -> Tensor:
    """ComfyUI's sample_er_sde, of levels all of which are finite."""
    noise, known = drawn(), []

    def scaler(at: float) -> float:
        return at * (math.exp(at**0.3) + 10)

    for a, b in pairwise(levels):
        x0 = evaluate(x, a.line)
        if not b.ratio:
            return x0
        s, t = a.ratio, b.ratio
        # Their alpha is 1 on a diffusion, as their x is ours / alpha.
        alpha_s, alpha_t = (1.0, 1.0) if a.curve == "diffusion" else (a.alpha, b.alpha)
        r = scaler(t) / scaler(s)
        x = alpha_t / alpha_s * r * x + alpha_t * (1 - r) * x0
        d = None
        if known:
            step = (s - t) / 200
            places = [t + k * step for k in range(200)]
            total = sum(1 / scaler(p) for p in places) * step
            s_last, x0_last, d_last = known[-1]
            d = (x0 - x0_last) / (s - s_last)
            x = x + alpha_t * (t - s + total * scaler(t)) * d
            if len(known) > 1:
                total = sum((p - s) / scaler(p) for p in places) * step
                u = (d - d_last) / ((s - known[-2][0]) / 2)
                x = x + alpha_t * ((t - s) ** 2 / 2 + total * scaler(t)) * u
        x = x + alpha_t * noise() * math.sqrt(t**2 - s**2 * r**2)
        known.append((s, x0, d))
    return x


@pytest.mark.parametrize("curve", ["diffusion", "flow"])
def test_er_sde_equals_comfyui(curve):
    levels = KARRAS if curve == "diffusion" else FLOW
    theirs = levels if curve == "diffusion" else [level_at(0.9999, "flow"), *FLOW[1:]]
    want = comfy_er_sde(theirs, evaluate_of(curve), levels[0].line * FRESH[0])
    assert missed("ComfyUI", "er_sde", ours("er_sde", levels, "comfyui"), want) < 1e-11


def comfy_sde_of_flow(evaluate: Evaluate, x: Tensor, sigmas: list[float], name: str, eta: float):
    """ComfyUI's sample_dpmpp_2m_sde and 3m_sde of a flow."""
    noise, known = drawn(), []
    sigmas = [0.9999, *sigmas[1:]]
    for a, b in pairwise(sigmas):
        x0 = evaluate(x, a)
        if b == 0:
            return x0
        h = math.log((1 - b) / b) - math.log((1 - a) / a)
        drift = h * (eta + 1)
        alpha, gain = 1 - b, -math.expm1(-drift)
        x = b / a * math.exp(-h * eta) * x + alpha * gain * x0
        phi_2 = 1 - gain / drift
        if known:
            h_1, x0_1 = known[-1]
            first = (x0 - x0_1) * h / h_1
            if name == "dpm++2m_sde":
                x = x + 0.5 * alpha * gain * first
            elif len(known) == 1 or name == "dpm++2m_sde_heun":
                x = x + alpha * phi_2 * first
            else:
                h_2, x0_2 = known[-2]
                second = (x0_1 - x0_2) * h / h_2
                both = h_1 / h + h_2 / h
                bend = (first - second) / both
                x = (
                    x
                    + alpha * phi_2 * (first + bend * h_1 / h)
                    - alpha * (phi_2 / drift - 0.5) * bend
                )
        x = x + noise() * b * math.sqrt(-math.expm1(-2 * h * eta))
        known.append((h, x0))
    return x


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["dpm++2m_sde", "dpm++2m_sde_heun", "dpm++3m_sde"])
def test_sde_solvers_of_a_flow_equal_comfyui(name, eta):
    sigmas = [level.line for level in FLOW]
    want = comfy_sde_of_flow(evaluate_of("flow"), FRESH[0], sigmas, name, eta)
    assert missed("ComfyUI", name, ours(name, FLOW, "comfyui", eta=eta), want) < 1e-11


def a1111_restart(evaluate: Evaluate, x: Tensor, sigmas: list[float], karras) -> Iterator[Tensor]:
    """A1111's restart_sampler, each step of it; `karras(n, low, high)` is k-diffusion's."""
    steps, noise = len(sigmas) - 1, drawn()
    if steps >= 20:
        back, times = (9, 1) if steps < 36 else (steps // 4, 2)
        sigmas = karras(steps - back * times, sigmas[-2], sigmas[0])
        low, high = (min(sigmas, key=lambda s: abs(s - at)) for at in (0.1, 2.0))
        again = list(pairwise(karras(back + 1, low, high)[:-1]))
    plan = []
    for pair in pairwise(sigmas):
        plan.append(pair)
        if steps >= 20 and pair[1] == low:
            plan += again * times
    last = plan[0][0]
    for a, b in plan:
        if last < a:
            x = x + noise() * math.sqrt(a**2 - last**2)
        x0 = evaluate(x, a)
        d, last = (x - x0) / a, b
        if b:
            d = (d + (lambda y: (y - evaluate(y, b)) / b)(x + d * (b - a))) / 2
        x = x + d * (b - a)
        yield x


@pytest.mark.parametrize("steps", [8, 20, 36, 50])
def test_restart_equals_a1111(steps):
    sampling = k_diffusion.sampling()
    levels = SCHEDULES["karras"](SD, steps)
    ends = [level.ratio for level in levels]

    def karras(n: int, low: float, high: float) -> list[float]:
        ramp = np.linspace(0, 1, n)
        theirs = sampling.get_sigmas_karras(n, low, high).double().numpy()
        sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        np.testing.assert_allclose(theirs[:-1], sigmas, rtol=2e-5)
        return [high, *sigmas[1:-1].tolist(), low, 0.0]

    want = list(a1111_restart(evaluate_of("diffusion"), ends[0] * FRESH[0], ends, karras))
    assert len(want) == steps
    assert missed("A1111", "restart", ours("restart", levels), want[-1]) < 1e-10


def comfy_ancestral_flow(sigmas, evaluate, x, eta: float, name: str) -> Tensor:
    """ComfyUI's *_ancestral_RF of Euler and DPM2."""
    noise = drawn()
    for a, b in pairwise(sigmas):
        x0 = evaluate(x, a)
        if b == 0:
            return x0
        down = b * (1 + (b / a - 1) * eta)
        keep, left = 1 - b, 1 - down
        fresh = math.sqrt(b**2 - down**2 * keep**2 / left**2)
        d = (x - x0) / a
        if name == "dpm2_a":
            half = math.sqrt(a * down)
            y = x + d * (half - a)
            d = (y - evaluate(y, half)) / half
        x = keep / left * (x + d * (down - a)) + noise() * fresh
    return x


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", ["euler_a", "dpm2_a"])
def test_ancestral_steps_of_a_flow_equal_comfyui(name, eta):
    sigmas = [level.line for level in FLOW]
    want = comfy_ancestral_flow(sigmas, evaluate_of("flow"), FRESH[0], eta, name)
    assert missed("ComfyUI", name, ours(name, FLOW, "comfyui", eta=eta), want) < 1e-12
    assert difference(ours(name, FLOW, eta=eta), want) > 1e-3


def of_diffusers(
    scheduler: diffusers.SchedulerMixin, steps: int, evaluate: Evaluate, x: Tensor
) -> tuple[list[float], Tensor]:
    """Ratios of diffusers' scheduler, and its last sample; its x is the network's."""
    scheduler.set_timesteps(steps)
    ratios = [float(ratio) for ratio in scheduler.sigmas]
    x = x * Level(ratios[0], "diffusion").sigma
    for time, ratio in zip(scheduler.timesteps, ratios[:-1], strict=True):
        level = Level(ratio, "diffusion")
        x0 = evaluate(x / level.alpha, ratio)
        x = scheduler.step((x - level.alpha * x0) / level.sigma, time, x).prev_sample
    return ratios, x


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("deis", partial(diffusers.DEISMultistepScheduler, use_karras_sigmas=True)),
        (
            "dpm++3m",
            partial(diffusers.DPMSolverMultistepScheduler, solver_order=3, use_karras_sigmas=True),
        ),
    ],
)
def test_multistep_samplers_equal_diffusers(name, make):
    ratios, want = of_diffusers(make(**SCALED), 20, evaluate_of("diffusion"), FRESH[0])
    levels = [
        Level(ratio, "diffusion") for ratio in dict.fromkeys(ratios)
    ]  # DEIS' last is there twice
    assert missed("diffusers", name, ours(name, levels, "diffusers"), want) < 1e-4


def test_plms_equals_diffusers():
    """PNDM without Runge-Kutta steps, which looks twice in its first step."""
    scheduler = exact(diffusers.PNDMScheduler(**SCALED, skip_prk_steps=True, steps_offset=1))
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(20)
    times = scheduler.timesteps.tolist()
    levels = [SD.level(time) for time in dict.fromkeys(times)]
    evaluate = evaluate_of("diffusion")
    x = levels[0].sigma * FRESH[0]
    for time in times:
        level = SD.level(time)
        x0 = evaluate(x / level.alpha, level.ratio)
        x = scheduler.step((x - level.alpha * x0) / level.sigma, time, x).prev_sample
    got = ours("plms", [*levels, SD.entry(0)])
    assert missed("diffusers", "plms", got, x) < 1e-9
