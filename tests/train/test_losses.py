"""The forward process and its losses, against closed forms."""

import math

import pytest
import torch

from txt2img.diffusion.levels import Diffusion, Flow, Level, betas, zero_terminal_snr
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.train.losses import (
    LevelBatch,
    add_noise,
    contrastive_loss,
    denoising_loss,
    psnr,
    snr_weights,
    vae_loss,
)

TABLE = betas("scaled_linear", 1000, 0.00085, 0.012)


def test_the_closed_form_equals_a_thousand_small_steps() -> None:
    """x_t = sqrt(1 − beta_t) x_{t−1} + sqrt(beta_t) noise, in mean and variance."""
    mean, variance = 1.0, 0.0
    for beta in TABLE[:500]:
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    level = Diffusion(TABLE).level(499)
    levels = LevelBatch.of([level])
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    assert add_noise(one, none, levels).item() == pytest.approx(mean, rel=1e-6)
    assert add_noise(none, one, levels).item() == pytest.approx(variance**0.5, rel=1e-6)


def test_each_picture_of_a_batch_has_its_own_level() -> None:
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    levels = [Level(0.0, "diffusion"), Level(float("inf"), "diffusion")]
    x = add_noise(x0, noise, LevelBatch.of(levels))
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[1], noise[1])


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_the_loss_is_zero_at_the_target_and_the_mean_square_beside_it(kind: str) -> None:
    process = Flow() if kind == "flow" else Diffusion(TABLE)
    levels = LevelBatch.of([process.level(100), process.level(900)])
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    prediction = PREDICTIONS[kind]
    target = prediction.target(x0, noise, levels)
    assert torch.equal(denoising_loss(target, x0, noise, levels, prediction), torch.zeros(2))
    off = denoising_loss(target + 0.5, x0, noise, levels, prediction)
    assert torch.allclose(off, torch.full((2,), 0.25), atol=1e-6)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_min_snr_weighs_the_miss_in_x0_by_snr_up_to_gamma(kind: str) -> None:
    """A miss d of the output is a miss in x0; its weighted square must be min(snr, 5) of that."""
    process, prediction = Diffusion(TABLE), PREDICTIONS[kind]
    for time in (10, 300, 700, 990):
        level = process.level(time)
        x, out = torch.randn(1, 1, 2, 2).double(), torch.randn(1, 1, 2, 2).double()
        miss = prediction.x0(x, out + 1.0, level) - prediction.x0(x, out, level)
        snr = torch.tensor([level.ratio**-2], dtype=torch.float64)
        weight = snr_weights(kind, snr, 5.0)
        # eps: x0's miss² is 1/snr; v: 1/(snr + 1)
        assert weight.item() == pytest.approx(min(snr.item(), 5.0) * miss.square().mean().item())


def test_without_gamma_and_on_a_flow_all_levels_weigh_alike() -> None:
    snr = torch.tensor([0.1, 1.0, 10.0])
    assert torch.equal(snr_weights("v", snr, None), torch.ones(3))
    assert torch.equal(snr_weights("flow", snr, 5.0), torch.ones(3))


def test_zero_snr_weights_are_finite() -> None:
    last = Diffusion(zero_terminal_snr(TABLE)).level(999)
    weights = snr_weights("v", LevelBatch.of([last]).snr, 5.0)
    assert torch.isfinite(weights).all()


def test_the_kl_term_is_the_closed_form_of_two_gaussians() -> None:
    mean, log_variance = torch.randn(1, 2, 1, 1), torch.randn(1, 2, 1, 1)
    blank = torch.zeros(1, 3, 4, 4)
    got = vae_loss(blank, blank, mean, log_variance, kl=1.0, edges=1.0)
    ours = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    assert got.item() == pytest.approx(
        torch.distributions.kl_divergence(ours, unit).sum().item(), rel=1e-5
    )


def test_a_blurred_edge_costs_more_with_the_edge_term() -> None:
    sharp = torch.full((1, 3, 8, 8), -1.0)
    sharp[..., 4:] = 1.0
    soft = sharp.clone()
    soft[..., 3:5] = 0.0
    flat = sharp.clone()
    flat[..., :2] += 0.5  # the same mean absolute miss, in fewer, smoother places
    flat[..., -2:] -= 0.5
    nothing = torch.zeros(1, 1, 1, 1)
    miss = [vae_loss(copy, sharp, nothing, nothing, 0.0, 0.0).item() for copy in (soft, flat)]
    edge = [vae_loss(copy, sharp, nothing, nothing, 0.0, 1.0).item() for copy in (soft, flat)]
    assert miss[0] == pytest.approx(miss[1])
    assert edge[0] > edge[1]


def test_psnr_of_a_tenth_of_the_range_is_20_dB() -> None:
    pixels = torch.zeros(1, 3, 4, 4)
    assert psnr(pixels + 0.2, pixels) == pytest.approx(20.0, abs=1e-4)


def test_pairs_cost_nothing_when_found_and_chance_when_all_are_alike() -> None:
    apart, scale = torch.eye(4), torch.tensor(100.0).log()
    assert contrastive_loss(apart, apart, scale).item() == pytest.approx(0.0, abs=1e-6)
    assert contrastive_loss(apart, apart.roll(1, 0), scale).item() == pytest.approx(100.0)
    alike = torch.ones(4, 4) / 2.0
    assert contrastive_loss(alike, alike, scale).item() == pytest.approx(math.log(4))


def test_likeness_is_multiplied_by_a_hundred_at_most() -> None:
    texts = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    sights = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    largest = contrastive_loss(texts, sights, torch.tensor(100.0).log())
    assert torch.equal(contrastive_loss(texts, sights, torch.tensor(9.0)), largest)
