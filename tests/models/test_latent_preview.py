"""Previews of latents: by published factors, or by factors fitted to the model's decoder."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from txt2img.models.configs import VAEConfig
from txt2img.models.latent_preview import (
    FIT_STD,
    PUBLISHED,
    RIDGE,
    Colours,
    colours,
    fitted,
    is_default,
)
from txt2img.models.vae import VAE


class Linear(VAE):
    """A VAE whose decoder paints each cell in the colour that a matrix gives it."""

    def __init__(self, matrix: Tensor, bias: Tensor, patch: int) -> None:
        channels = len(matrix) * patch**2
        super().__init__(
            VAEConfig(latent_channels=channels, channels=(32, 32), groups=8, patch=patch)
        )
        self.matrix, self.bias = matrix, bias

    def decode(self, latent: Tensor) -> Tensor:
        cells = functional.pixel_shuffle(latent, self.config.patch)
        pixels = torch.einsum("bchw,cr->brhw", cells, self.matrix) + self.bias[:, None, None]
        return functional.interpolate(pixels, scale_factor=2)


@pytest.mark.parametrize(("channels", "patch"), [(8, 1), (16, 1), (32, 2)])
def test_a_linear_decoders_colours_are_recovered(channels: int, patch: int) -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = 0.05 * torch.randn(channels, 3, generator=generator)  # nothing is clamped
    bias = torch.tensor([0.1, -0.2, 0.0])
    vae = Linear(matrix, bias, patch)
    found = fitted(vae)
    x0 = torch.randn(1, channels * patch**2, 5, 4, generator=generator)
    expected = functional.avg_pool2d(vae.decode(x0), 2)
    assert found.of(x0).shape == (1, 3, 5 * patch, 4 * patch)
    torch.testing.assert_close(found.of(x0), expected, atol=0.1, rtol=0)
    # The ridge adds to the variance of each channel and of the constant, and shrinks both for it.
    shrunk = 1 + RIDGE / FIT_STD**2
    torch.testing.assert_close(found.factors * shrunk, matrix, atol=0.02, rtol=0)
    torch.testing.assert_close(found.bias * (1 + RIDGE), bias, atol=0.02, rtol=0)


def test_colours_are_linear_in_each_cell() -> None:
    x0 = torch.arange(2 * 4 * 2 * 3, dtype=torch.float32).reshape(2, 4, 2, 3)
    factors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0.5]])
    got = Colours(factors, torch.tensor([0.0, 1.0, 0.0])).of(x0)
    assert torch.equal(got[:, 0], x0[:, 0])
    assert torch.equal(got[:, 1], x0[:, 1] + 1)
    assert torch.equal(got[:, 2], x0[:, 2] + x0[:, 3] / 2)


@pytest.mark.parametrize("scaling", PUBLISHED)
def test_published_vaes_have_published_colours(scaling: float) -> None:
    own = VAEConfig(scaling=scaling)
    with torch.device("meta"):
        vae = VAE(own)  # not asked
    found = colours(vae, own)
    assert found.factors.tolist() == torch.tensor(PUBLISHED[scaling][0]).tolist()
    assert found.bias.tolist() == torch.tensor(PUBLISHED[scaling][1]).tolist()


def test_the_default_models_colours_are_known_and_its_decoders() -> None:
    from txt2img.system.device.device import choose
    from txt2img.weights.load import load

    model = load("default", choose("cpu", "vae=bf16"))
    assert is_default(model.vae), (
        "its latents are others now: run python -m tests.bench.fit_colours"
    )
    vae = load("default", choose("cpu")).vae
    found = colours(vae, model.family.vae)
    # White, as its pictures' grounds are, and red, as its apples: what else could they be?
    plain = torch.ones(2, 3, 128, 128)
    plain[1, 1:] = -0.7
    with torch.inference_mode():
        white, red = found.of(vae.encode(plain))[:, :, 2:-2, 2:-2].mean((2, 3))
    assert white.min() > 0.6
    assert red[0] > red[1] + 0.3 and red[0] > red[2] + 0.3


def test_unpublished_colours_are_fitted_to_the_decoder() -> None:
    from txt2img.system.device.device import choose
    from txt2img.weights.load import load

    model = load("default", choose("cpu"))
    generator = torch.Generator().manual_seed(2)  # not that of the fit
    x = FIT_STD * torch.randn(1, 8, 8, 8, generator=generator)
    with torch.inference_mode():
        pixels = model.vae.decode(x).clamp(-1, 1)
        cells = functional.avg_pool2d(pixels, model.vae.config.factor)
        missed = (fitted(model.vae).of(x) - cells).pow(2).mean()
    spread = (cells - cells.mean((0, 2, 3), keepdim=True)).pow(2).mean()
    assert missed < 0.8 * spread  # a decoder that also cleans is less linear
