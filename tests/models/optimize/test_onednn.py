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
from txt2img.models.optimize import cpu
from txt2img.models.optimize.onednn import PackedConv, PackedLinear
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.pipeline import cpu_speed
from txt2img.system.device.memory import MemoryState
from txt2img.weights.model import Model

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 here"
)
HALF = torch.bfloat16


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
        layers = nn.Sequential(nn.Conv2d(64, 48, kernel, stride, padding=kernel // 2)).to(HALF)
    x = draw(2, 64, *size).to(HALF)
    own = layers(x)
    cpu.prepare(layers, QUICK)
    assert type(layers[0]) is PackedConv
    near(layers(x), own)
    near(layers(x[:1]), own[:1])


@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (1, 24), (2, 1500, 24)])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_product_gives_the_same(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(1)
    with torch.inference_mode(False):
        layers = nn.Sequential(nn.Linear(24, 40, bias=bias)).to(HALF)
    x = draw(*shape).to(HALF)
    own = layers(x)
    cpu.prepare(layers, QUICK)
    assert type(layers[0]) is PackedLinear
    near(layers(x), own)
    wide = torch.cat([x, x], dim=-1)
    near(layers(wide[..., :24]), own)  # as a view of something larger


def test_weights_that_change_or_want_gradients_are_seen() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(4, 4))
    layers.to(HALF)
    x = draw(1, 8, 4, 4).to(HALF)
    cpu.prepare(layers, QUICK)
    with torch.inference_mode():
        before = layers(x)
        for layer in layers:
            layer.weight.copy_(-layer.weight)
        after = layers(x)
        cpu.restore(layers)
        near(after, layers(x))
        assert not torch.allclose(after, before)
    assert type(layers[2]) is nn.Linear and "_made" not in layers[0].__dict__
    cpu.prepare(layers, QUICK)
    layers(x).sum().backward()
    assert all(layer.weight.grad is not None for layer in layers)


def test_a_quantised_matrix_multiplies_in_its_own_way() -> None:
    class Other(Tensor):
        """Stands for torchao's."""

    layer = PackedLinear(4, 3, bias=False).to(HALF)
    plain = nn.functional.linear(draw(2, 4).to(HALF), layer.weight.detach())
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Other), requires_grad=False)
    with torch.inference_mode():
        found = layer(draw(2, 4).to(HALF))
    assert layer._made is None and torch.equal(found.as_subclass(Tensor), plain)


@torch.inference_mode()
def test_a_packed_unet_tells_the_same() -> None:
    torch.manual_seed(2)
    with torch.inference_mode(False):
        unet = UNet(SMALL).eval().to(HALF)
    x, time = draw(2, 4, 16, 16).to(HALF), torch.full((2,), 400.0)
    cond = Cond(draw(2, 7, 16, seed=1).to(HALF))
    own = unet(x, time, cond)
    exact = copy.deepcopy(unet).float()(x.float(), time, Cond(cond.tokens.float()))
    cpu.prepare(unet, QUICK)
    assert_as_exact(unet(x, time, cond), own, exact)
    assert not any(type(part) in (nn.Conv2d, nn.Linear) for part in unet.modules())
    cpu.restore(unet)
    assert torch.equal(unet(x, time, cond), own)


@torch.inference_mode()
def test_a_network_in_another_precision_is_as_if_it_had_always_been_in_it() -> None:
    torch.manual_seed(2)
    with torch.inference_mode(False):
        unet = UNet(SMALL).eval().to(HALF)
        fresh = copy.deepcopy(unet).float()
    x, time = draw(2, 4, 16, 16), torch.full((2,), 400.0)
    cond = Cond(draw(2, 7, 16, seed=1))
    cpu.prepare(unet, QUICK)
    half = unet(x.to(HALF), time, Cond(cond.tokens.to(HALF)))
    with torch.inference_mode(False):
        unet.float()
    plain = copy.deepcopy(fresh)(x, time, cond)
    torch.testing.assert_close(unet(x, time, cond), plain, atol=1e-5, rtol=0)  # not yet prepared
    for network in (unet, fresh):
        cpu.prepare(network, QUICK)
    assert torch.equal(unet(x, time, cond), fresh(x, time, cond))
    assert not any(isinstance(part, PackedConv | PackedLinear) for part in unet.modules())
    with torch.inference_mode(False):
        unet.to(HALF)
    cpu.prepare(unet, QUICK)
    assert torch.equal(unet(x.to(HALF), time, Cond(cond.tokens.to(HALF))), half)


def test_without_onednn_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = UNet(SMALL).to(HALF)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert cpu.need(unet, 16, 16, QUICK) == 0
    cpu.prepare(unet, QUICK)
    assert not any(isinstance(part, PackedConv | PackedLinear) for part in unet.modules())


@torch.inference_mode()
def test_what_is_kept_is_known_before() -> None:
    with torch.inference_mode(False):
        unet = UNet(replace(SMALL, channels=(64, 96))).to(HALF)
    for side in (32, 48):  # at 48 the first level's filters are not worth a copy
        expected = cpu.need(unet, side, side, QUICK)
        cpu.prepare(unet, QUICK)
        unet(draw(1, 4, side, side).to(HALF), torch.full((1,), 4.0), Cond(draw(1, 7, 16).to(HALF)))
        kinds = PackedConv, PackedLinear
        parts = [part for part in unet.modules() if isinstance(part, kinds) and part._made]
        assert sum(2 * part.weight.numel() for part in parts) == expected
        cpu.prepare(unet, replace(QUICK, pack=False))
        assert not any(isinstance(part, kinds) for part in unet.modules())
        assert cpu.need(unet, side, side, replace(QUICK, pack=False)) == 0


@torch.inference_mode()
def test_a_decoder_is_made_quick_where_bf16_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    with torch.inference_mode(False):
        vae = VAE(VAEConfig(channels=(64, 64), layers=1)).eval().to(HALF)
    x = draw(1, 4, 16, 16).to(HALF)
    own, exact = vae.decode(x), copy.deepcopy(vae).float().decode(x.float())
    model = cast(Model, SimpleNamespace(vae=vae, memory=MemoryState()))
    monkeypatch.setattr(cpu_speed, "has_bf16", lambda device: True)
    cpu_speed.prepare_vae(model, x)
    assert type(vae.decoder.conv_in) is PackedConv
    assert_as_exact(vae.decode(x), own, exact)
    monkeypatch.setattr(cpu_speed, "has_bf16", lambda device: False)
    cpu_speed.prepare_vae(model, x)
    assert type(vae.decoder.conv_in) is nn.Conv2d


def test_bits_do_not_depend_on_what_was_multiplied_before() -> None:
    torch.manual_seed(1)
    layers = [nn.Sequential(nn.Linear(320, 320)).to(HALF) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    few, many = draw(3, 320).to(HALF), draw(2000, 320).to(HALF)
    for made in layers:
        cpu.prepare(made, QUICK)
    with torch.inference_mode():
        layers[0](many)
        assert torch.equal(layers[0](few), layers[1](few))
