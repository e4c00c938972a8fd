"""Noise levels: their curves, tables and times."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from txt2img.diffusion.levels import Diffusion, Flow, Level, betas, zero_terminal_snr
from txt2img.errors import BadFile

SD = betas("scaled_linear", 1000, 0.00085, 0.012)
TABLES = [
    ("linear", "linear", 0.0001, 0.02),
    ("scaled_linear", "scaled_linear", 0.00085, 0.012),
    ("cosine", "squaredcos_cap_v2", 0.0, 0.0),
]


def test_a_level_is_on_its_curve():
    for ratio in (0.0, 0.03, 1.0, 14.6, 1e200, math.inf):
        arc, straight = Level(ratio, "diffusion"), Level(ratio, "flow")
        assert arc.alpha**2 + arc.sigma**2 == pytest.approx(1, abs=1e-15)
        assert straight.alpha + straight.sigma == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("curve", ["diffusion", "flow"])
def test_the_ends_are_a_clean_picture_and_pure_noise(curve):
    clean, noise = Level(0.0, curve), Level(math.inf, curve)
    assert (clean.alpha, clean.sigma, clean.half_log_snr) == (1, 0, math.inf)
    assert (noise.alpha, noise.sigma, noise.half_log_snr) == (0, 1, -math.inf)


@pytest.mark.parametrize(("name", "theirs", "start", "end"), TABLES)
def test_tables_equal_diffusers(name, theirs, start, end):
    process = Diffusion(betas(name, 1000, start, end))
    scheduler = DDPMScheduler(beta_schedule=theirs, beta_start=start, beta_end=end)
    squares = torch.tensor([process.level(time).alpha ** 2 for time in range(1000)])
    torch.testing.assert_close(squares, scheduler.alphas_cumprod, rtol=2e-5, atol=1e-8)


def test_zero_terminal_snr_equals_diffusers():
    ours = torch.tensor(zero_terminal_snr(SD))
    theirs = rescale_zero_terminal_snr(torch.tensor(SD, dtype=torch.float64)).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_level():
    process = Diffusion(zero_terminal_snr(SD))
    assert process.level(999).ratio == math.inf
    assert process.level(0).ratio == pytest.approx(Diffusion(SD).level(0).ratio, rel=1e-12)


@pytest.mark.parametrize("process", [Diffusion(SD), Diffusion(zero_terminal_snr(SD)), Flow()])
def test_time_is_the_inverse_of_level(process):
    for time in (0, 0.3, 1, 500, 733.25, 998, 998.5, 999):
        assert process.time(process.level(time)) == pytest.approx(time, abs=1e-9)


def test_whole_times_are_exact():
    process = Diffusion(SD)
    assert [process.time(process.level(time)) for time in range(1000)] == list(range(1000))


def test_times_are_clamped_to_the_table():
    process = Diffusion(SD)
    assert process.level(-3) == process.level(0)
    assert process.level(2000) == process.level(999)
    assert process.time(Level(0.0, "diffusion")) == 0
    assert process.time(Level(math.inf, "diffusion")) == 999


def test_times_between_entries_equal_diffusers():
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True
    )
    scheduler.set_timesteps(20)
    ours = [Diffusion(SD).time(Level(float(s), "diffusion")) for s in scheduler.sigmas[:-1]]
    torch.testing.assert_close(torch.tensor(ours), scheduler.timesteps, rtol=0, atol=2e-2)


def test_between_entries_the_log_ratio_is_even():
    process = Diffusion(SD)
    middle = math.sqrt(process.level(0).ratio * process.level(1).ratio)
    assert process.level(0.5).ratio == pytest.approx(middle, rel=1e-12)


def test_flow_times_may_have_another_unit():
    flow = Flow(time_factor=1.0)
    assert flow.level(0.25) == Level(1 / 3, "flow")
    assert flow.time(Level(math.inf, "flow")) == 1


def test_unknown_betas_are_refused():
    with pytest.raises(BadFile, match=r"'sigmoid'.*linear, scaled_linear, cosine"):
        betas("sigmoid", 1000, 0.1, 0.2)


@pytest.mark.parametrize("bad", [[], [0.1], [0.0, 0.1], [1.0, 0.5], [0.1, 1.1], [0.1, math.nan]])
def test_impossible_betas_are_refused(bad):
    with pytest.raises(BadFile):
        Diffusion(bad)
