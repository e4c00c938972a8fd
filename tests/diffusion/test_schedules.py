"""Schedules: a number of steps → levels."""

import math
from itertools import pairwise

import numpy as np
import pytest
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

from txt2img.diffusion.levels import Diffusion, Flow, Level, betas, zero_terminal_snr
from txt2img.diffusion.schedules import SCHEDULES, SHIFTS, flow
from txt2img.errors import BadRequest
from txt2img.request import request

TABLE = betas("scaled_linear", 1000, 0.00085, 0.012)
SD, ZERO_SNR, FLOW = Diffusion(TABLE), Diffusion(zero_terminal_snr(TABLE)), Flow()
THEIRS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def times(levels: list[Level]) -> list[float]:
    """The times of all levels but the last, on Stable Diffusion's table."""
    return [SD.time(level) for level in levels[:-1]]


def test_every_name_has_its_schedule():
    assert set(SCHEDULES) == set(request.Schedule)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("process", [SD, ZERO_SNR, FLOW], ids=["sd", "zero_snr", "flow"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50, 999, 1000])
def test_levels_fall_to_a_clean_picture(name, process, steps):
    levels = SCHEDULES[name](process, steps)
    assert len(levels) == steps + 1
    assert all(a.ratio > b.ratio for a, b in pairwise(levels) if a != b)
    assert levels[-1].ratio == 0
    assert len({level.curve for level in levels}) == 1


@pytest.mark.parametrize("name", ["linear", "trailing", "karras", "exponential", "flow"])
@pytest.mark.parametrize("process", [ZERO_SNR, FLOW])
def test_pure_noise_is_where_they_start(name, process):
    assert SCHEDULES[name](process, 20)[0].ratio == math.inf


@pytest.mark.parametrize("name", ["linear", "trailing", "karras", "exponential", "flow"])
def test_they_start_at_the_noisiest_entry(name):
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
@pytest.mark.parametrize("steps", [4, 20, 50])
def test_shifts_by_tokens_and_steps_equal_diffusers(tokens, steps):
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


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_shifted_flow_starts_at_pure_noise_on_every_schedule(name):
    levels = SCHEDULES[name](Flow(shift=3.0), 20)
    assert levels[0].ratio == (pytest.approx(3 * 0.952 / 0.048) if name == "leading" else math.inf)
    assert all(a.ratio > b.ratio for a, b in pairwise(levels))
