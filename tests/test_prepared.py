"""Prepared networks: the same outputs, the same weights, and what is worn is seen."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.guidance import Cond
from txt2img.models import prepared, winograd
from txt2img.models.layers import Attention
from txt2img.models.unet import UNet, UNetConfig
from txt2img.models.vae import VAE, VAEConfig

SMALL = UNetConfig(
    channels=(64, 64), layers=1, attention=(True, False), depth=(1, 1), heads=(2, 2), cross_dim=16
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conv(channels: int = 64, out: int = 64) -> nn.Conv2d:
    """A prepared convolution."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1))
    prepared.prepare(layers)
    made = layers[0]
    assert isinstance(made, prepared.PreparedConv)
    return made


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(2)
    return UNet(SMALL).eval()


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (17, 22), (1, 5)])
@pytest.mark.parametrize("batch", [1, 2])
def test_winograd_convolves_at_every_size(size: tuple[int, int], batch: int) -> None:
    x, weight, bias = draw(batch, 5, *size), draw(7, 5, 3, 3, seed=1), draw(7, seed=2)
    expected = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    made = winograd.convolve(x, winograd.transformed(weight), bias)
    torch.testing.assert_close(made.double(), expected, atol=1e-4, rtol=0)


def test_winograd_in_bands_of_tiles_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, matrices = draw(1, 5, 32, 32), winograd.transformed(draw(7, 5, 3, 3, seed=1))
    whole = winograd.convolve(x, matrices, None)
    monkeypatch.setattr(winograd, "CHUNK", 1)
    torch.testing.assert_close(winograd.convolve(x, matrices, None), whole, atol=1e-4, rtol=0)


def test_a_changed_filter_is_transformed_anew_and_back_to_the_same_bits() -> None:
    layer, x = conv(), draw(1, 64, 16, 16)
    with torch.inference_mode():
        before, own = layer(x), layer.weight.clone()
        layer.weight.copy_(2 * own)
        changed = functional.conv2d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), changed, atol=1e-4, rtol=0)
        layer.weight.copy_(own)
        assert torch.equal(layer(x), before)


def test_a_prepared_convolution_still_learns() -> None:
    layer = conv()
    layer(draw(1, 64, 16, 16)).sum().backward()
    assert layer.weight.grad is not None


@torch.no_grad()
def test_keys_and_values_are_computed_once_a_prompt() -> None:
    torch.manual_seed(3)
    layers = nn.Sequential(Attention(8, 6, 2))
    prepared.prepare(layers)
    calls: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        calls.append(out)

    layers[0].to_k.register_forward_hook(note)
    x, context = draw(1, 5, 8), draw(1, 7, 6, seed=1)
    first = layers[0](x, context)
    assert torch.equal(layers[0](x, context), first)
    assert len(calls) == 1
    layers[0](x, context.clone())
    assert len(calls) == 2


def test_keys_follow_a_lora() -> None:
    torch.manual_seed(3)
    layers = nn.Sequential(Attention(8, 6, 2))
    x, context = draw(1, 5, 8), draw(1, 7, 6, seed=1)
    with torch.inference_mode():
        prepared.prepare(layers)
        layers[0](x, context)
        layers[0].to_v.weight.copy_(-layers[0].to_v.weight)
        changed = layers[0](x, context)
        prepared.restore(layers)
        torch.testing.assert_close(changed, layers[0](x, context), atol=0, rtol=0)


@torch.inference_mode()
def test_a_prepared_unet_tells_the_same(unet: UNet) -> None:
    x, time, cond = draw(2, 4, 16, 16), torch.full((2,), 400.0), Cond(draw(2, 7, 16, seed=1))
    own = unet(x, time, cond)
    prepared.prepare(unet)
    torch.testing.assert_close(unet(x, time, cond), own, atol=1e-4, rtol=0)
    prepared.restore(unet)
    assert torch.equal(unet(x, time, cond), own)


@torch.inference_mode()
def test_latents_are_shared_by_the_texts_of_a_pair(unet: UNet) -> None:
    x, time, cond = draw(2, 4, 16, 16), torch.full((2,), 400.0), Cond(draw(4, 7, 16, seed=1))
    apart = unet(torch.cat([x, x]), torch.cat([time, time]), cond)
    torch.testing.assert_close(unet(x, time, cond), apart, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_prepared_vae_decodes_the_same() -> None:
    torch.manual_seed(4)
    vae, latent = VAE(VAEConfig(channels=(64, 64), layers=1)).eval(), draw(1, 4, 16, 16)
    own = vae.decode(latent)
    prepared.prepare(vae)
    assert isinstance(vae.decoder.conv_in, prepared.PreparedConv)
    torch.testing.assert_close(vae.decode(latent), own, atol=1e-4, rtol=0)


def test_other_precisions_are_left_alone() -> None:
    layers = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)).to(torch.bfloat16)
    prepared.prepare(layers)
    assert type(layers[0]) is nn.Conv2d


def test_parameters_keep_their_names(unet: UNet) -> None:
    names = list(unet.state_dict())
    prepared.prepare(unet)
    assert list(unet.state_dict()) == names
