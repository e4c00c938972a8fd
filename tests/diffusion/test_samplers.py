"""From noise to a picture: against diffusers' schedulers and against closed forms.

Both sides get the same levels, because diffusers rounds its own: DPM++ and UniPC start from
"linspace" of steps + 1 rounded times, Euler interpolates sigma where we (as k-diffusion)
interpolate its logarithm, and all tables are float32. Samples are float64, so that no bound
depends on how a processor rounds; what remains are the peer's own casts to float32.
"""

import inspect
import itertools
import math
from collections.abc import Callable
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor

from tests.support.mixture import exact_end, mixture, network, pictures
from txt2img.diffusion.brownian import BrownianPath
from txt2img.diffusion.levels import (
    Diffusion,
    Flow,
    Level,
    State,
    ancestral,
    betas,
    zero_terminal_snr,
)
from txt2img.diffusion.multistep import lms
from txt2img.diffusion.samplers import ETA_SAMPLERS, SAMPLERS, sampler_for
from txt2img.diffusion.schedules import SCHEDULES, flow
from txt2img.errors import BadRequest
from txt2img.request import request

TABLE = betas("scaled_linear", 1000, 0.00085, 0.012)
SD, ZERO_SNR, FLOW = Diffusion(TABLE), Diffusion(zero_terminal_snr(TABLE)), Flow()
THEIRS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PIXELS = (2, 4, 4, 4)

EULERS = (
    diffusers.EulerDiscreteScheduler,
    diffusers.EulerAncestralDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
    diffusers.LMSDiscreteScheduler,
)

# Broad and near, so that every sampler ends elsewhere: see the test of that.
DENOISE = mixture(0.6 * pictures(torch.float64), 0.4)


def noises(seed: int, dtype: torch.dtype = torch.float64) -> Callable[..., Tensor]:
    """Fresh noise at each step, drawn in `dtype`, the same again for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(PIXELS, generator=generator, dtype=dtype).double()


def seeded(seed: int) -> torch.Generator:
    """A generator of that seed."""
    return torch.Generator().manual_seed(seed)


def drain(
    name: str,
    levels: list[Level],
    process_noise: int = 5,
    dtype: torch.dtype = torch.float64,
    **more: float,
) -> Tensor:
    """The last x of a sampler, from noise of seed 1."""
    *_, last = SAMPLERS[name](DENOISE, noises(1)(), levels, noises(process_noise, dtype), **more)
    return last.x


def difference(a: Tensor, b: Tensor) -> float:
    """How far a is from b, relative to b."""
    return float((a - b).norm() / b.norm())


def exact(scheduler):
    """A scheduler with its table in float64, made by its own formulas."""
    config, power = scheduler.config, 1 if scheduler.config.beta_schedule == "linear" else 2
    ends = config.beta_start ** (1 / power), config.beta_end ** (1 / power)
    theirs = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64) ** power
    if config.get("rescale_betas_zero_snr"):
        theirs = rescale_zero_terminal_snr(theirs)
    scheduler.alphas_cumprod = (1 - theirs).cumprod(0)
    return scheduler


def reference(scheduler, times, levels: list[Level], kind: str = "eps", **more: float) -> Tensor:
    """diffusers' last sample, with one level for each of its times, from noise of seed 1.

    Its Euler, Heun and LMS keep x / alpha; scale_model_input makes x of it.
    """
    generator, evaluate = torch.Generator().manual_seed(5), network(DENOISE, kind)
    spreads = isinstance(scheduler, EULERS)
    x = noises(1)() / (levels[0].alpha if spreads else 1)
    if "generator" in inspect.signature(scheduler.step).parameters:
        more = {"generator": generator, **more}
    for time, level in zip(times, levels, strict=True):
        out = evaluate(scheduler.scale_model_input(x, time), level)
        x = scheduler.step(out, time, x, **more).prev_sample
    return x


def falling(levels: list[Level]) -> list[Level]:
    """Levels without repeats (Heun's second evaluations), and the clean picture."""
    return [*dict.fromkeys(levels), Level(0.0, levels[0].curve)]


def test_every_name_has_its_sampler():
    assert set(SAMPLERS) == set(request.Sampler)


SDE = {"algorithm_type": "sde-dpmsolver++"}
SIGMA_SCHEDULERS = [
    ("euler", "EulerDiscreteScheduler", {}),
    ("euler_a", "EulerAncestralDiscreteScheduler", {}),
    ("heun", "HeunDiscreteScheduler", {}),
    ("dpm++2m", "DPMSolverMultistepScheduler", {}),
    ("dpm++2m", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("dpm++2m_sde", "DPMSolverMultistepScheduler", SDE),
    ("dpm++2m_sde", "DPMSolverMultistepScheduler", SDE | {"use_karras_sigmas": True}),
    ("unipc", "UniPCMultistepScheduler", {}),
    ("unipc", "UniPCMultistepScheduler", {"use_karras_sigmas": True}),
]


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize(("name", "cls", "config"), SIGMA_SCHEDULERS)
def test_samplers_equal_diffusers(name, cls, config, spacing):
    scheduler = getattr(diffusers, cls)(**THEIRS, **config, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    times = scheduler.timesteps
    levels = [Level(float(ratio), "diffusion") for ratio in scheduler.sigmas[: len(times)]]
    want = reference(scheduler, times, levels)
    assert len(falling(levels)) == 21
    drawn = torch.float32 if name == "dpm++2m_sde" else torch.float64  # as its step() draws
    assert difference(drain(name, falling(levels), dtype=drawn), want) < 5e-6


def test_lms_equals_diffusers():
    pytest.importorskip("scipy", reason="diffusers' LMS needs it")
    scheduler = diffusers.LMSDiscreteScheduler(**THEIRS)
    scheduler.set_timesteps(20)
    levels = [Level(float(ratio), "diffusion") for ratio in scheduler.sigmas[:-1]]
    want = reference(scheduler, scheduler.timesteps, levels, order=3)
    assert difference(drain("lms", falling(levels)), want) < 5e-6


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_equals_diffusers(eta, spacing):
    config = THEIRS | {"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")}
    scheduler = exact(diffusers.DDIMScheduler(**config, clip_sample=False))
    scheduler.set_timesteps(20)
    levels = SCHEDULES[spacing](SD, 20)
    want = reference(scheduler, scheduler.timesteps, levels[:-1], eta=eta)
    assert difference(drain("ddim", levels, eta=eta), want) < 1e-12


def test_ddpm_equals_diffusers():
    more = {"clip_sample": False, "variance_type": "fixed_small", "steps_offset": 1}
    scheduler = exact(diffusers.DDPMScheduler(**THEIRS, **more))
    scheduler.set_timesteps(20)
    levels = SCHEDULES["leading"](SD, 20)
    want = reference(scheduler, scheduler.timesteps, levels[:-1])
    assert difference(drain("ddpm", levels), want) < 1e-8  # it clamps variances at 1e-20


@pytest.mark.parametrize("steps", [4, 20])
def test_lcm_equals_diffusers(steps):
    scheduler = exact(diffusers.LCMScheduler(**THEIRS))
    scheduler.set_timesteps(steps)
    levels = [SD.level(int(time)) for time in scheduler.timesteps]
    want = reference(scheduler, scheduler.timesteps, levels)
    assert difference(drain("lcm", falling(levels)), want) < 2e-6  # its c_skip and c_out


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 4), (0.3, 1), (0.3, 20), (1.0, 4)])
def test_tcd_equals_diffusers(eta, steps):
    """Theirs ends at the cleanest entry of the table, ours in the clean picture behind it."""
    scheduler = exact(diffusers.TCDScheduler(**THEIRS))
    scheduler.set_timesteps(steps)
    levels = [SD.level(int(time)) for time in scheduler.timesteps]
    want = reference(scheduler, scheduler.timesteps, levels, eta=eta)
    assert difference(drain("tcd", [*levels, SD.entry(0)], eta=eta), want) < 1e-12


def test_tcd_keeps_to_the_times_of_the_models_table():
    other = Diffusion(betas("linear", 500, 0.0001, 0.04))
    linear = {"beta_start": 0.0001, "beta_end": 0.04, "beta_schedule": "linear"}
    scheduler = exact(diffusers.TCDScheduler(num_train_timesteps=500, **linear))
    scheduler.set_timesteps(4)
    levels = [other.level(int(time)) for time in scheduler.timesteps]
    want = reference(scheduler, scheduler.timesteps, levels)
    ends = [
        list(sampler_for("tcd", clock)(DENOISE, noises(1)(), [*levels, other.entry(0)], noises(5)))
        for clock in (other, None)
    ]
    assert difference(ends[0][-1].x, want) < 1e-12
    assert difference(ends[1][-1].x, want) > 1e-3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("curve", ["diffusion", "flow"])
def test_dpmpp_2s_a_equals_k_diffusion(eta, curve):
    """Its sample_dpmpp_2s_ancestral, written out for sigmas, in float64; its x is ours / alpha."""
    denoise = mixture(0.6 * pictures(torch.float64), 0.4)
    levels = [Level(ratio, curve) for ratio in (14.6, 7.0, 2.5, 0.8, 0.1, 0.0)]
    fresh = [noise.double() for noise in torch.randn(6, *PIXELS, generator=seeded(3))]
    used = iter(fresh[1:])
    states = SAMPLERS["dpm++2s_a"](
        denoise, levels[0].alpha * 14.6 * fresh[0], levels, lambda a, b: next(used), eta=eta
    )
    *_, last = states

    def evaluate(y: Tensor, sigma: float) -> Tensor:
        level = Level(sigma, curve)
        return denoise(level.alpha * y, level)

    y, drawn = 14.6 * fresh[0], iter(fresh[1:])
    for a, b in itertools.pairwise(level.ratio for level in levels):
        denoised = evaluate(y, a)
        up = min(b, eta * math.sqrt(b**2 * (a**2 - b**2) / a**2))
        down = math.sqrt(b**2 - up**2)
        if down == 0:
            y = y + (y - denoised) / a * (down - a)
        else:
            t, t_next = -math.log(a), -math.log(down)
            h = t_next - t
            s = math.exp(-(t + h / 2))
            denoised = evaluate(s / a * y - math.expm1(-h / 2) * denoised, s)
            y = down / a * y - math.expm1(-h) * denoised
        y = y + next(drawn) * up if b and eta else y
    torch.testing.assert_close(last.x, levels[-1].alpha * y, rtol=1e-11, atol=1e-11)


# at eta 1 diffusers takes the root of 0 less a rounding error, first of all: NaN on some machines
@pytest.mark.parametrize("eta", [0.0, 0.9])
def test_ddim_from_zero_terminal_snr_equals_diffusers(eta):
    zero_snr = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    more = {"clip_sample": False, "timestep_spacing": "trailing"}
    scheduler = exact(diffusers.DDIMScheduler(**THEIRS, **zero_snr, **more))
    scheduler.set_timesteps(20)
    levels = SCHEDULES["trailing"](ZERO_SNR, 20)
    want = reference(scheduler, scheduler.timesteps, levels[:-1], "v", eta=eta)
    assert difference(drain("ddim", levels, eta=eta), want) < 1e-12


def test_flow_equals_diffusers():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20))
    levels, evaluate, x = flow(FLOW, 20), network(DENOISE, "flow"), noises(1)()
    for time, level in zip(scheduler.timesteps, levels, strict=False):
        x = scheduler.step(evaluate(x, level), time, x).prev_sample
    assert difference(drain("euler", levels), x) < 5e-6


FLOW_PEERS = {
    "euler": partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0),
    "heun": partial(diffusers.FlowMatchHeunDiscreteScheduler, shift=3.0),
    "dpm++2m": partial(
        diffusers.DPMSolverMultistepScheduler,
        use_flow_sigmas=True,
        flow_shift=3.0,
        prediction_type="flow_prediction",
    ),
    "unipc": partial(
        diffusers.UniPCMultistepScheduler,
        use_flow_sigmas=True,
        flow_shift=3.0,
        prediction_type="flow_prediction",
        final_sigmas_type="zero",
    ),
}


@pytest.mark.parametrize("name", FLOW_PEERS)
def test_samplers_of_a_shifted_flow_equal_diffusers(name):
    scheduler = FLOW_PEERS[name]()
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double().tolist()[: len(scheduler.timesteps)]  # some of them twice
    levels = [FLOW.level(1000 * sigma) for sigma in sigmas]
    evaluate, x = network(DENOISE, "flow"), noises(1)()
    for time, level in zip(scheduler.timesteps, levels, strict=True):
        x = scheduler.step(evaluate(x, level), time, x).prev_sample
    assert difference(drain(name, falling(levels)), x) < 2e-6


# Equal to others where there is no guidance, or eta is theirs.
SAME = ("ddpm", "ddim", "euler_cfg++", "euler_a_cfg++", "ddim_cfg++", "res_multistep_a")


def test_these_comparisons_can_tell_samplers_apart():
    levels = SCHEDULES["trailing"](SD, 20)
    ends = [drain(name, levels) for name in SAMPLERS if name not in SAME]
    assert min(difference(a, b) for a in ends for b in ends if a is not b) > 3e-4


ORDERS = [
    ("euler", 0.9),
    ("ddim", 0.9),
    ("heun", 1.8),
    ("lms", 1.8),
    ("dpm++2m", 1.8),
    ("dpm++sde", 1.8),
    ("dpm++2s_a", 1.8),
    ("unipc", 2.5),
    ("dpm2", 1.8),
    ("dpm2_a", 1.8),
    ("dpm++2m_sde_heun", 1.8),
    ("dpm++3m", 1.6),
    ("dpm++3m_sde", 1.6),
    ("deis", 1.8),
    ("res_multistep", 1.8),
    ("res_multistep_a", 1.8),
    ("euler_cfg++", 0.9),
    ("euler_a_cfg++", 0.9),
    ("plms", 0.9),  # its weights are those of equal steps, which these are not
    ("ipndm", 0.9),
    ("ipndm_v", 1.8),
]
LINE = torch.tensor([-1.2, 0.3, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1)
STARTS = torch.linspace(-2, 2, 21, dtype=torch.float64).reshape(-1, 1, 1, 1)


def miss(name: str, levels: list[Level]) -> float:
    """How far a sampler at eta 0 is from the exact end, just before the last level."""
    sampler, levels = SAMPLERS[name], [level for level in levels if level.ratio]
    sampler = partial(sampler, eta=0.0) if name in ETA_SAMPLERS else sampler
    *_, last = sampler(mixture(LINE, 0.5), STARTS, levels, lambda a, b: torch.zeros(()))
    want = exact_end(STARTS, LINE, 0.5, levels[0], levels[-1])
    return float((last.x - want).abs().max())


@pytest.mark.parametrize(("name", "order"), ORDERS)
def test_halving_the_steps_shows_the_order_of_accuracy(name, order):
    for schedule in ("karras", "exponential"):
        coarse, fine = (miss(name, SCHEDULES[schedule](SD, steps)) for steps in (40, 80))
        assert math.log2(coarse / fine) > order, schedule
        assert fine < 0.03 / 8 ** (order > 1), schedule
    coarse, fine = (miss(name, flow(FLOW, steps, 1.0)) for steps in (40, 80))  # from pure noise
    assert math.log2(coarse / fine) > min(order, 1.6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pictures_from_pure_noise_are_finite(name):
    """In one step and in several; some schedules begin at the noise, some just below it."""
    for process, schedule, steps in itertools.product(
        (ZERO_SNR, FLOW), ("trailing", "karras", "ddim_uniform", "linear_quadratic"), (1, 2, 12)
    ):
        x = drain(name, SCHEDULES[schedule](process, steps))
        assert torch.isfinite(x).all() and x.abs().max() < 8, (process, schedule, steps)


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_step_is_a_state(name):
    """The sample given is left as it was."""
    x, levels = noises(1)(), SCHEDULES["karras"](SD, 6)
    states = list(SAMPLERS[name](DENOISE, x, levels, noises(5)))
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6]
    assert all(isinstance(state, State) and state.x0.shape == PIXELS for state in states)
    torch.testing.assert_close(x, noises(1)(), rtol=0, atol=0)
    if name not in WITH_NOISE_LEFT:
        torch.testing.assert_close(states[-1].x, states[-1].x0)


# They end at the last level with noise, or by slopes from before.
WITH_NOISE_LEFT = ("lms", "plms", "dpm_fast", "dpm_adaptive")


FRESH = [
    *("ddpm", "euler_a", "dpm++2m_sde", "dpm++sde", "dpm++2s_a", "lcm", "tcd"),
    *("dpm++2m_sde_heun", "dpm++3m_sde", "dpm2_a", "res_multistep_a", "er_sde", "euler_a_cfg++"),
]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "restart"])
def test_fresh_noise_matters_where_it_is_drawn_alone(name):
    levels = SCHEDULES["karras"](SD, 8)
    first, other, again = (drain(name, levels, seed) for seed in (5, 6, 5))
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    if name in FRESH:
        assert difference(first, other) > 0.01
    else:
        torch.testing.assert_close(first, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ETA_SAMPLERS)
def test_eta_may_be_any_share(name):
    for process in (SD, ZERO_SNR, FLOW):
        levels = SCHEDULES["trailing"](process, 8)
        still = drain(name, levels, eta=0.0)
        torch.testing.assert_close(still, drain(name, levels, 6, eta=0.0), rtol=0, atol=0)
        assert difference(drain(name, levels, eta=0.5), still) > 0.003


def test_eta_is_refused_at_once_where_it_means_nothing():
    for name in sorted(SAMPLERS.keys() - ETA_SAMPLERS.keys()):
        with pytest.raises(BadRequest, match=r"eta 0.5.*ddim.*dpm\+\+sde"):
            SAMPLERS[name](DENOISE, noises(1)(), [], noises(5), eta=0.5)


@pytest.mark.parametrize(("name", "tolerance"), [("dpm++sde", 0.01), ("dpm++2m_sde", 0.02)])
def test_stochastic_samplers_keep_the_spread_of_pictures(name, tolerance):
    sides, generator = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1), torch.Generator()
    generator.manual_seed(0)
    levels = SCHEDULES["karras"](SD, 20)
    draw = partial(torch.randn, 40_000, 1, 1, 1, generator=generator)
    path = BrownianPath(lambda seed: draw(generator=torch.Generator().manual_seed(seed)), 1)
    *_, last = SAMPLERS[name](mixture(sides, 0.3), draw(), levels, path)
    assert float(last.x.abs().mean()) == pytest.approx(1, abs=0.03)
    assert float(last.x.abs().std()) == pytest.approx(0.3, abs=tolerance)


def test_from_pure_noise_all_of_the_next_noise_is_fresh():
    assert ancestral(FLOW.entry(999), Level(0.5, "flow"), 1.0) == Level(0.5, "flow").sigma


def test_lms_is_exact_where_the_slope_is_a_parabola():
    """With x0 such that the slope is s² along the line, the third order makes no error."""
    levels = [Level(ratio, "flow") for ratio in (9.0, 4.0, 2.0, 1.0, 0.5, 0.25)]
    start = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    states = list(lms(lambda x, at: x - at.sigma**3, start, levels, noises(5)))
    for before, after, a, b in zip(states[1:], states[2:], levels[2:], levels[3:], strict=False):
        assert float(after.x - before.x) == pytest.approx((b.sigma**3 - a.sigma**3) / 3, rel=1e-10)
