"""Packed layers in bf16: the same outputs but for rounding, and weights that change are seen."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from tests.models.optimize.test_cpu import QUICK, SMALL, draw
from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import VAEConfig
from txt2img.models.layers import Conv2d, Linear, weights_changed
from txt2img.models.optimize import onednn
from txt2img.models.optimize.cpu import Fast, PackedConv, PackedLinear, bytes_needed, optimize
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.pipeline import cpu_speed
from txt2img.system.device.memory import MemoryState
from txt2img.weights.model import Model

pytestmark = pytest.mark.skipif(
    not onednn.available(torch.bfloat16), reason="oneDNN has no bf16 here"
)
HALF = torch.bfloat16


def packed(network: nn.Module) -> list[Fast]:
    """What packs the weights of a network's layers."""
    kinds = [getattr(layer, "optimized", None) for layer in network.modules()]
    return [kind for kind in kinds if isinstance(kind, PackedConv | PackedLinear)]


def near(found: Tensor, expected: Tensor) -> None:
    """That both differ by what bf16 rounds, and no more: 8 bits of the largest."""
    assert found.dtype == expected.dtype
    most = expected.float().abs().max().item()
    torch.testing.assert_close(found.float(), expected.float(), atol=most / 2**7, rtol=0)


def assert_as_exact(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """That a network's output is as near the float32 one as torch's: both round at every layer."""
    errors = [(out.float() - exact).square().mean() for out in (found, plain)]
    assert errors[0] < 1.3 * errors[1]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("size", [(16, 16), (17, 22), (4, 4), (33, 40), (1, 5)])
@torch.inference_mode()
def test_a_packed_convolution_gives_the_same(
    kernel: int, stride: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    with torch.inference_mode(False):
        layers = nn.Sequential(Conv2d(64, 48, kernel, stride, padding=kernel // 2)).to(HALF)
    x = draw(2, 64, *size).to(HALF)
    own = layers(x)
    optimize(layers, QUICK)
    assert type(layers[0].optimized) is PackedConv
    near(layers(x), own)
    near(layers(x[:1]), own[:1])


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (1, 24), (2, 1500, 24)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_product_gives_the_same(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(1)
    with torch.inference_mode(False):
        layers = nn.Sequential(Linear(24, 40, bias=bias)).to(HALF)
    x = draw(*shape).to(HALF)
    own = layers(x)
    optimize(layers, QUICK)
    assert type(layers[0].optimized) is PackedLinear
    near(layers(x), own)
    wide = torch.cat([x, x], dim=-1)
    near(layers(wide[..., :24]), own)  # as a view of something larger


def test_changed_weights_and_gradients_are_seen() -> None:
    layers = nn.Sequential(Conv2d(8, 8, 3, padding=1), Conv2d(8, 8, 1), Linear(4, 4))
    layers.to(HALF)
    x = draw(1, 8, 4, 4).to(HALF)
    optimize(layers, QUICK)
    with torch.inference_mode():
        before = layers(x)
        for layer in layers:
            layer.weight.copy_(-layer.weight)
            weights_changed(layer)
        after = layers(x)
        optimize(layers)
        near(after, layers(x))
        assert not torch.allclose(after, before)
    assert layers[2].optimized is None and layers[0].optimized is None
    optimize(layers, QUICK)
    layers(x).sum().backward()
    assert all(layer.weight.grad is not None for layer in layers)


def test_a_quantised_matrix_is_not_packed() -> None:
    class Other(Tensor):
        """Stands for torchao's."""

    layer = Linear(4, 3, bias=False).to(HALF)
    optimize(nn.Sequential(layer), QUICK)
    plain = nn.functional.linear(draw(2, 4).to(HALF), layer.weight.detach())
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Other), requires_grad=False)
    with torch.inference_mode():
        found = layer(draw(2, 4).to(HALF))
    assert isinstance(layer.optimized, PackedLinear) and layer.optimized.cached is None
    assert torch.equal(found.as_subclass(Tensor), plain)


@torch.inference_mode()
def test_a_packed_unet_computes_the_same() -> None:
    torch.manual_seed(2)
    with torch.inference_mode(False):
        unet = UNet(SMALL).eval().to(HALF)
    x, time = draw(2, 4, 16, 16).to(HALF), torch.full((2,), 400.0)
    cond = Cond(draw(2, 7, 16, seed=1).to(HALF))
    own = unet(x, time, cond)
    exact = copy.deepcopy(unet).float()(x.float(), time, Cond(cond.tokens.float()))
    optimize(unet, QUICK)
    assert_as_exact(unet(x, time, cond), own, exact)
    layers = [part for part in unet.modules() if isinstance(part, Conv2d | Linear)]
    assert all(isinstance(layer.optimized, PackedConv | PackedLinear) for layer in layers)
    optimize(unet)
    assert torch.equal(unet(x, time, cond), own)


@torch.inference_mode()
def test_a_cast_network_computes_as_if_loaded_in_that_dtype() -> None:
    torch.manual_seed(2)
    with torch.inference_mode(False):
        unet = UNet(SMALL).eval().to(HALF)
        fresh = copy.deepcopy(unet).float()
    x, time = draw(2, 4, 16, 16), torch.full((2,), 400.0)
    cond = Cond(draw(2, 7, 16, seed=1))
    optimize(unet, QUICK)
    half = unet(x.to(HALF), time, Cond(cond.tokens.to(HALF)))
    with torch.inference_mode(False):
        unet.float()
    plain = copy.deepcopy(fresh)(x, time, cond)
    torch.testing.assert_close(unet(x, time, cond), plain, atol=1e-5, rtol=0)  # not yet prepared
    for network in (unet, fresh):
        optimize(network, QUICK)
    assert torch.equal(unet(x, time, cond), fresh(x, time, cond))
    assert not packed(unet)
    with torch.inference_mode(False):
        unet.to(HALF)
    optimize(unet, QUICK)
    assert torch.equal(unet(x.to(HALF), time, Cond(cond.tokens.to(HALF))), half)


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(SMALL).to(HALF)
    monkeypatch.setattr(onednn, "available", lambda dtype: False)
    assert bytes_needed(unet, 16, 16, QUICK) == 0
    optimize(unet, QUICK)
    assert not packed(unet)


@torch.inference_mode()
def test_the_bytes_of_packed_weights_are_known_before() -> None:
    with torch.inference_mode(False):
        unet = UNet(replace(SMALL, channels=(64, 96))).to(HALF)
    for side in (32, 48):  # at 48 the first level's filters are not worth a copy
        expected = bytes_needed(unet, side, side, QUICK)
        optimize(unet, QUICK)
        unet(draw(1, 4, side, side).to(HALF), torch.full((1,), 4.0), Cond(draw(1, 7, 16).to(HALF)))
        layouts = [fast.cached[1] for fast in packed(unet) if fast.cached]
        assert sum(2 * layout.numel() for layout in layouts) == expected
        optimize(unet, replace(QUICK, pack=False))
        assert not packed(unet)
        assert bytes_needed(unet, side, side, replace(QUICK, pack=False)) == 0


@torch.inference_mode()
def test_a_decoder_is_packed_where_the_cpu_has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    with torch.inference_mode(False):
        vae = VAE(VAEConfig(channels=(64, 64), layers=1)).eval().to(HALF)
    x = draw(1, 4, 16, 16).to(HALF)
    own, exact = vae.decode(x), copy.deepcopy(vae).float().decode(x.float())
    model = cast(Model, SimpleNamespace(vae=vae, memory=MemoryState()))
    monkeypatch.setattr(cpu_speed, "has_bf16", lambda device: True)
    cpu_speed.prepare_vae(model, (32, 32))
    assert type(vae.decoder.conv_in.optimized) is PackedConv
    assert_as_exact(vae.decode(x), own, exact)
    monkeypatch.setattr(cpu_speed, "has_bf16", lambda device: False)
    cpu_speed.prepare_vae(model, (32, 32))
    assert vae.decoder.conv_in.optimized is None


def test_bits_do_not_depend_on_what_was_multiplied_before() -> None:
    torch.manual_seed(1)
    layers = [nn.Sequential(Linear(320, 320)).to(HALF) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    few, many = draw(3, 320).to(HALF), draw(2000, 320).to(HALF)
    for made in layers:
        optimize(made, QUICK)
    with torch.inference_mode():
        layers[0](many)
        assert torch.equal(layers[0](few), layers[1](few))
