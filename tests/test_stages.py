"""What the stages learn from: times, and latents made plain."""

import random

import pytest
import torch

from txt2img.diffusion.levels import Diffusion, Flow, betas
from txt2img.models.shapes import VAEConfig
from txt2img.models.vae import VAE
from txt2img.train.stages import normalise, time_to_learn

TABLE = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))


@pytest.mark.parametrize("noisy", [0.0, 1.5])
@pytest.mark.parametrize("process", [TABLE, Flow()], ids=["diffusion", "flow"])
def test_times_are_spread_as_a_power(process: Diffusion | Flow, noisy: float) -> None:
    """The mean of a density that grows as t^n on 0 … 1 is (n + 1) / (n + 2)."""
    rng = random.Random(0)
    times = [time_to_learn(process, noisy, rng) for _ in range(20_000)]
    assert min(times) >= 0 and max(times) <= 1000
    assert sum(times) / len(times) == pytest.approx(1000 * (noisy + 1) / (noisy + 2), rel=0.01)


def test_normalised_latents_have_mean_0_and_variance_1_and_decode_alike() -> None:
    config = VAEConfig(latent_channels=4, channels=(8, 16), layers=1, groups=4, scaling=1.0)
    torch.manual_seed(0)
    vae, pixels = VAE(config).eval(), torch.rand(16, 3, 16, 16) * 2 - 1
    noise = torch.randn(16, 4, 8, 8)
    with torch.no_grad():
        before, drawn = vae.decode(vae.encode(pixels)), vae.decode(vae.encode(pixels, noise))
        normalise(vae, vae.encode(pixels))
        latents = vae.encode(pixels)
        assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
        assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4)
        assert torch.allclose(vae.decode(latents), before, atol=1e-4)
        assert torch.allclose(vae.decode(vae.encode(pixels, noise)), drawn, atol=1e-4)
