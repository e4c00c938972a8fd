"""Schedules: a number of steps → levels."""

import itertools
import math
from itertools import pairwise

import numpy as np
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.schedulers import AysSchedules

from txt2img.diffusion.beta import beta_quantile
from txt2img.diffusion.levels import Diffusion, Flow, Level, betas, zero_terminal_snr
from txt2img.diffusion.schedules import SCHEDULES, SHIFTS, flow, given, schedule_for
from txt2img.errors import BadRequest
from txt2img.request import request

TABLE = betas("scaled_linear", 1000, 0.00085, 0.012)
SD, ZERO_SNR, FLOW = Diffusion(TABLE), Diffusion(zero_terminal_snr(TABLE)), Flow()
THEIRS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def times(levels: list[Level]) -> list[float]:
    """The times of all levels but the last, on Stable Diffusion's table."""
    return [SD.time(level) for level in levels[:-1]]


def test_every_name_has_its_schedule():
    assert set(SCHEDULES) == set(request.Schedule) - {"automatic"}  # the sampler's


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("process", [SD, ZERO_SNR, FLOW], ids=["sd", "zero_snr", "flow"])
def test_levels_fall_to_a_clean_picture(name, process):
    for steps in (1, 2, 3, 50, 1000):
        if name == "align_your_steps" and process is FLOW:
            with pytest.raises(BadRequest, match="align_your_steps"):
                SCHEDULES[name](process, steps)
            continue
        levels = SCHEDULES[name](process, steps)
        assert len(levels) == steps + 1 or name == "ddim_uniform", steps
        assert all(a.ratio > b.ratio for a, b in pairwise(levels) if a != b), steps
        assert levels[-1].ratio == 0
        assert len({level.curve for level in levels}) == 1


AT_THE_TOP = sorted(SCHEDULES.keys() - {"leading", "ddim_uniform", "align_your_steps"})


@pytest.mark.parametrize("name", AT_THE_TOP)
def test_they_start_at_the_noisiest_entry(name):
    """Of two processes that is pure noise."""
    assert SCHEDULES[name](ZERO_SNR, 20)[0].ratio == math.inf
    assert SCHEDULES[name](FLOW, 20)[0].ratio == math.inf
    assert SCHEDULES[name](SD, 20)[0].ratio == pytest.approx(SD.level(999).ratio, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 20, 30, 50, 1000])
def test_trailing_equals_diffusers(steps):
    scheduler = DDIMScheduler(**THEIRS, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert times(SCHEDULES["trailing"](SD, steps)) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 7, 20, 30, 50, 999])
def test_leading_equals_diffusers(steps):
    scheduler = DDIMScheduler(**THEIRS, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    assert times(SCHEDULES["leading"](SD, steps)) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [7, 20, 50])
def test_linear_equals_diffusers(steps):
    scheduler = EulerDiscreteScheduler(**THEIRS, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(
        times(SCHEDULES["linear"](SD, steps)), scheduler.timesteps, rtol=1e-6
    )


@pytest.mark.parametrize("name", ["karras", "exponential"])
@pytest.mark.parametrize("steps", [7, 20, 50])
def test_karras_and_exponential_equal_diffusers(name, steps):
    scheduler = EulerDiscreteScheduler(**THEIRS, **{f"use_{name}_sigmas": True})
    scheduler.set_timesteps(steps)
    ratios = [level.ratio for level in SCHEDULES[name](SD, steps)]
    # Its table is float32: 1 - 0.99915 leaves the cleanest entry 3e-5 off.
    np.testing.assert_allclose(ratios, scheduler.sigmas, rtol=5e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_equals_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # Its own 20 steps end at twice-shifted 1/1000; these are what its FLUX pipeline gives it.
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 20, 20))
    sigmas = [level.sigma for level in flow(FLOW, 20, shift)]
    np.testing.assert_allclose(sigmas, scheduler.sigmas, rtol=1e-6)


@pytest.mark.parametrize("name", ["leading", "trailing"])
def test_more_steps_than_entries_are_refused(name):
    with pytest.raises(BadRequest, match=r"1 … 1,000 steps, got 1,001"):
        SCHEDULES[name](SD, 1001)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_a_shifted_flow_has_diffusers_sigmas(steps):
    shifted = Flow(shift=3.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)  # as Stable Diffusion 3's pipeline
    sigmas = [level.sigma for level in SCHEDULES["linear"](shifted, steps)]
    np.testing.assert_allclose(sigmas, scheduler.sigmas, rtol=1e-6)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))  # as Z-Image's
    sigmas = [level.sigma for level in flow(shifted, steps)]
    np.testing.assert_allclose(sigmas, scheduler.sigmas, rtol=1e-6)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 4300, 4301, 16384])
def test_shifts_by_tokens_and_steps_equal_diffusers(tokens):
    for steps in (4, 20, 50):
        _check_shifts(tokens, steps)


def _check_shifts(tokens, steps):
    mu = {
        "linear": calculate_shift(tokens, 256, 4096, 0.5, 1.15),
        "empirical": compute_empirical_mu(tokens, steps),
    }
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    even = np.linspace(1, 1 / steps, steps)
    for name, shift in SHIFTS.items():
        levels = flow(Flow(shift=shift(tokens, steps)), steps)
        theirs = scheduler.time_shift(mu[name], 1.0, even)  # in float64
        sigmas = [level.sigma for level in levels[:-1]]
        np.testing.assert_allclose(sigmas, theirs, rtol=1e-14)
        scheduler.set_timesteps(sigmas=even.tolist(), mu=mu[name])
        np.testing.assert_allclose([*sigmas, 0], scheduler.sigmas, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"align_your_steps"}))
def test_a_shifted_flow_starts_at_pure_noise_on_every_schedule(name):
    levels = SCHEDULES[name](Flow(shift=3.0), 20)
    if name in ("leading", "ddim_uniform"):
        assert levels[0].ratio == pytest.approx(3 * 0.952 / 0.048)
    else:
        assert levels[0].ratio == math.inf
    assert all(a.ratio > b.ratio for a, b in pairwise(levels))


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (2.0, 3.0), (0.5, 4.0), (20.0, 0.7)])
def test_quantiles_of_beta_equal_scipys(a, b):
    stats = pytest.importorskip("scipy.stats")
    for p in (0.0, 1e-6, 0.01, 0.2, 0.5, 0.77, 0.999, 1 - 1e-9, 1.0):
        assert beta_quantile(p, a, b) == pytest.approx(stats.beta.ppf(p, a, b), rel=1e-9, abs=1e-14)


def table(process: Diffusion | Flow) -> np.ndarray:
    """ComfyUI's model_sampling.sigmas."""
    return np.array([process.entry(i).line for i in range(process.steps)])


def comfyui_levels(name: str, sigmas: np.ndarray, steps: int) -> list[float]:
    """The formulas of comfy/samplers.py and nodes_align_your_steps.py."""
    count, low, high = len(sigmas), sigmas[0], sigmas[-1]
    if name == "simple":
        return [*(sigmas[-(1 + int(x * count / steps))] for x in range(steps)), 0.0]
    if name == "ddim_uniform":
        return [*sigmas[1 :: max(count // steps, 1)][::-1], 0.0]
    if name == "beta":
        ppf = pytest.importorskip("scipy.stats").beta.ppf
        places = np.rint(ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6) * (count - 1))
        return [*sigmas[[int(place) for place in dict.fromkeys(places)]], 0.0]
    if name == "kl_optimal":
        share = np.arange(steps) / (steps - 1)
        return [*np.tan(share * math.atan(low) + (1 - share) * math.atan(high)), 0.0]
    if name == "linear_quadratic":
        half, threshold = steps // 2, 0.025
        more = half - threshold * steps
        square = more / (half * (steps - half) ** 2)
        line = threshold / half - 2 * more / (steps - half) ** 2
        done = [i * threshold / half for i in range(half)]
        done += [square * (i * i + half**2) + line * i for i in range(half, steps)]
        return [high * (1 - x) for x in [*done, 1.0]]
    assert name == "align_your_steps"
    ends = [14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092]
    ends += [0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582]
    places, logs = np.linspace(0, 1, 11), np.log(ends[::-1])
    return [*np.exp(np.interp(np.linspace(0, 1, steps + 1), places, logs))[::-1][:-1], 0.0]


@pytest.mark.parametrize(
    "name",
    ["simple", "ddim_uniform", "beta", "kl_optimal", "linear_quadratic", "align_your_steps"],
)
def test_schedules_equal_comfyui(name):
    processes = [SD] if name == "align_your_steps" else [SD, FLOW, Flow(shift=3.0)]
    for process, steps in itertools.product(processes, (4, 10, 20, 30)):
        sigmas = table(process)
        lines = [level.line for level in schedule_for(name, "comfyui")(process, steps)]
        expected = comfyui_levels(name, sigmas, steps)
        np.testing.assert_allclose(lines, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [4, 11, 20])
def test_schedules_equal_a1111(steps):
    """modules/sd_schedulers.py."""
    ratios = {
        name: [level.ratio for level in schedule_for(name, "a1111", xl)(SD, steps)]
        for name, xl in (("sgm_uniform", False), ("kl_optimal", False), ("beta", False))
    }
    low, high = SD.ratios[0], SD.ratios[-1]
    logs = np.interp(np.linspace(999, 0, steps + 1)[:-1], np.arange(1000), np.log(SD.ratios))
    np.testing.assert_allclose(ratios["sgm_uniform"], [*np.exp(logs), 0], rtol=1e-9)
    share = np.arange(steps) / steps
    theirs = np.tan(share * math.atan(low) + (1 - share) * math.atan(high))
    np.testing.assert_allclose(ratios["kl_optimal"], [*theirs, 0], rtol=1e-9)
    ppf = pytest.importorskip("scipy.stats").beta.ppf
    theirs = low + ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6) * (high - low)
    np.testing.assert_allclose(ratios["beta"], [*theirs, 0], rtol=1e-9)
    scheduler = EulerDiscreteScheduler(**THEIRS, use_beta_sigmas=True)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(ratios["beta"], scheduler.sigmas, rtol=5e-5)


@pytest.mark.parametrize("xl", [False, True])
def test_align_your_steps_has_the_published_levels(xl):
    kind = "StableDiffusionXLSigmas" if xl else "StableDiffusionSigmas"
    published = AysSchedules[kind]
    ratios = [level.ratio for level in schedule_for("align_your_steps", xl=xl)(SD, 10)]
    assert ratios == pytest.approx(published)
    theirs = [level.ratio for level in schedule_for("align_your_steps", "a1111", xl)(SD, 11)]
    assert theirs[:-2] == pytest.approx(published[:-1]) and theirs[-2] == pytest.approx(0.029)


def test_given_sigmas_are_levels_of_either_process():
    assert [level.ratio for level in given(SD, [math.inf, 5.0, 0.0])] == [math.inf, 5.0, 0.0]
    assert [level.ratio for level in given(FLOW, [1.0, 0.5, 0.0])] == [math.inf, 1.0, 0.0]
    with pytest.raises(BadRequest, match="0 … 1"):
        given(FLOW, [1.5, 0.5, 0.0])
