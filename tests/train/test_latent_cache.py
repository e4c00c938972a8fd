"""Latents: kept between runs, and made plain."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from txt2img.models.configs import VAEConfig
from txt2img.models.vae import VAE
from txt2img.train.config import TrainConfig
from txt2img.train.latent_cache import cached, digest, normalise_latents


@pytest.mark.parametrize(("scaling", "shift"), [(1.0, 0.0), (0.6, 0.0), (0.6, 0.2)])
def test_normalised_latents_have_the_spread_asked_for_and_decode_alike(
    scaling: float, shift: float
) -> None:
    config = VAEConfig(
        latent_channels=4, channels=(8, 16), layers=1, groups=4, scaling=scaling, shift=shift
    )
    torch.manual_seed(0)
    vae, pixels = VAE(config).eval(), torch.rand(16, 3, 16, 16) * 2 - 1
    noise = torch.randn(16, 4, 8, 8)
    with torch.no_grad():
        before, drawn = vae.decode(vae.encode(pixels)), vae.decode(vae.encode(pixels, noise))
        normalise_latents(vae, vae.encode(pixels))
        latents = vae.encode(pixels)
        middle = torch.full((4,), -shift * scaling)
        assert torch.allclose(latents.mean(dim=(0, 2, 3)), middle, atol=1e-4)
        assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.full((4,), scaling), atol=1e-4)
        assert torch.allclose(vae.decode(latents), before, atol=1e-4)
        assert torch.allclose(vae.decode(vae.encode(pixels, noise)), drawn, atol=1e-4)


def test_what_was_made_is_read_until_its_key_differs(tmp_path: Path) -> None:
    accelerator, made = Accelerator(cpu=True), []
    config = TrainConfig(out=tmp_path)

    def make() -> Tensor:
        made.append(1)
        return torch.full((2, 3), 1.0 / 3.0)

    first = cached("latents", "a", make, config, accelerator)
    again = cached("latents", "a", make, config, accelerator)
    assert torch.equal(first, again)  # half precision each time, or a run would change with stops
    assert (first - 1.0 / 3.0).abs().max() < 1e-3
    assert len(made) == 1
    cached("latents", "b", make, config, accelerator)
    cached("latents", "b", make, TrainConfig(out=tmp_path, resume=False), accelerator)
    assert len(made) == 3


def test_a_fingerprint_tells_weights_and_texts_apart() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert digest("x", one) == digest("x", one)
    assert len({digest("x", one), digest("x", other), digest("y", one), digest("x", "y")}) == 4
