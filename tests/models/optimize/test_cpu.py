"""Networks optimised for a CPU: the same outputs, the same weights, and changes are seen."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import UNetConfig, VAEConfig
from txt2img.models.layers import Attention, Conv2d, FeedForward, weights_changed
from txt2img.models.optimize import cpu, onednn
from txt2img.models.optimize.cpu import CpuPlan, Fast, FastConv, algorithm, bytes_needed, optimize
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE

SMALL = UNetConfig(
    channels=(64, 64), layers=1, attention=(True, False), depth=(1, 1), heads=(2, 2), cross_dim=16
)
QUICK = CpuPlan(evaluations=30)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conv(kernel: int = 3, stride: int = 1, plan: CpuPlan = QUICK) -> Conv2d:
    """An optimised convolution of 64 channels."""
    torch.manual_seed(1)
    layers = nn.Sequential(Conv2d(64, 64, kernel, stride, padding=kernel // 2))
    optimize(layers, plan)
    layer = layers[0]
    assert isinstance(layer, Conv2d) and isinstance(layer.optimized, FastConv)
    return layer


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(2)
    return UNet(SMALL).eval()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("size", [(16, 16), (17, 22), (4, 4), (33, 40), (1, 5)])
@pytest.mark.parametrize(
    "plan", [QUICK, CpuPlan(evaluations=30, pack=False), CpuPlan(evaluations=1)]
)
@torch.no_grad()
def test_an_optimised_convolution_gives_the_same(
    kernel: int, stride: int, size: tuple[int, int], plan: CpuPlan
) -> None:
    layer, x = conv(kernel, stride, plan), draw(2, 64, *size)
    own = functional.conv2d(x, layer.weight, layer.bias, stride, padding=kernel // 2)
    torch.testing.assert_close(layer(x), own, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x[:1, :, ::2]), layer(x[:, :, ::2])[:1], atol=1e-5, rtol=0)


def test_large_maps_are_transformed_and_small_ones_packed() -> None:
    def chosen(height: int, width: int, plan: CpuPlan) -> str:
        return algorithm(conv(), height, width, plan)

    assert chosen(16, 16, QUICK) == chosen(64, 16, QUICK) == "winograd"
    assert chosen(8, 64, QUICK) == chosen(15, 15, QUICK) == "packed"
    assert (
        chosen(8, 64, CpuPlan(evaluations=30, pack=False))
        == chosen(8, 64, CpuPlan(evaluations=1))
        == "small"
    )
    assert chosen(16, 16, CpuPlan(evaluations=3)) == "packed"  # too few for the transform to pay
    assert chosen(32, 32, CpuPlan(evaluations=1)) == "winograd"
    assert chosen(16, 16, CpuPlan(evaluations=30, winograd_side=32)) == "packed"
    assert chosen(8, 8, QUICK) == chosen(4, 16, QUICK) == chosen(1, 1, QUICK) == "im2col"
    assert algorithm(conv(stride=2), 16, 16, QUICK) == "im2col"
    assert algorithm(conv(kernel=5), 8, 8, QUICK) == "packed"
    assert (
        chosen(8, 8, CpuPlan(evaluations=30, pack=False))
        == chosen(8, 8, CpuPlan(evaluations=1))
        == "small"
    )
    assert algorithm(conv(stride=2), 64, 64, QUICK) == "packed"
    assert algorithm(conv(stride=2), 66, 64, QUICK) == "plain"
    assert algorithm(Conv2d(4, 64, 3, padding=1), 64, 64, QUICK) == "plain"


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (9, 9)])
def test_a_changed_filter_is_laid_out_again_and_back_to_the_same_bits(
    size: tuple[int, int],
) -> None:
    layer, x = conv(), draw(1, 64, *size)
    with torch.inference_mode():
        before, own = layer(x), layer.weight.clone()
        layer.weight.copy_(2 * own)
        weights_changed(layer)
        changed = functional.conv2d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), changed, atol=1e-5, rtol=0)
        layer.weight.copy_(own)
        weights_changed(layer)
        assert torch.equal(layer(x), before)


def test_an_optimised_convolution_has_gradients() -> None:
    layer = conv()
    layer(draw(1, 64, 16, 16)).sum().backward()
    assert layer.weight.grad is not None


@torch.no_grad()
def test_keys_and_values_are_computed_once_a_prompt() -> None:
    torch.manual_seed(3)
    layers = nn.Sequential(Attention(8, 6, 2))
    optimize(layers, QUICK)
    calls: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        calls.append(out)

    layers[0].to_k.register_forward_hook(note)
    x, context = draw(1, 5, 8), draw(1, 7, 6, seed=1)
    first = layers[0](x, context)
    assert torch.equal(layers[0](x, context), first)
    assert len(calls) == 1
    layers[0](x, other := context.clone())
    assert torch.equal(layers[0](x, context), first)
    assert len(calls) == 2
    del other
    assert len(layers[0].optimized.contexts) == 1  # what nobody can ask for is forgotten


@torch.no_grad()
def test_a_feed_forward_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    layers, x = nn.Sequential(FeedForward(8)), draw(2, 7, 8)
    own = layers(x)
    optimize(layers, QUICK)
    monkeypatch.setattr(cpu, "TOKENS", 4)
    torch.testing.assert_close(layers(x), own, atol=1e-6, rtol=0)


def test_keys_follow_a_lora() -> None:
    torch.manual_seed(3)
    layers = nn.Sequential(Attention(8, 6, 2))
    x, context = draw(1, 5, 8), draw(1, 7, 6, seed=1)
    with torch.inference_mode():
        optimize(layers, QUICK)
        layers[0](x, context)
        layers[0].to_v.weight.copy_(-layers[0].to_v.weight)
        weights_changed(layers[0].to_v)
        changed = layers[0](x, context)
        optimize(layers)
        torch.testing.assert_close(changed, layers[0](x, context), atol=0, rtol=0)


@torch.inference_mode()
def test_an_optimised_unet_gives_the_same(unet: UNet) -> None:
    x, time, cond = draw(2, 4, 16, 16), torch.full((2,), 400.0), Cond(draw(2, 7, 16, seed=1))
    own = unet(x, time, cond)
    optimize(unet, QUICK)
    torch.testing.assert_close(unet(x, time, cond), own, atol=1e-4, rtol=0)
    optimize(unet)
    assert torch.equal(unet(x, time, cond), own)


@torch.inference_mode()
def test_latents_are_broadcast_to_a_pair_of_texts(unet: UNet) -> None:
    x, time, cond = draw(2, 4, 16, 16), torch.full((2,), 400.0), Cond(draw(4, 7, 16, seed=1))
    apart = unet(torch.cat([x, x]), torch.cat([time, time]), cond)
    torch.testing.assert_close(unet(x, time, cond), apart, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_optimised_vae_decodes_the_same() -> None:
    torch.manual_seed(4)
    vae, latent = VAE(VAEConfig(channels=(64, 64), layers=1)).eval(), draw(1, 4, 16, 16)
    own = vae.decode(latent)
    optimize(vae, QUICK)
    assert isinstance(vae.decoder.conv_in.optimized, FastConv)
    torch.testing.assert_close(vae.decode(latent), own, atol=1e-4, rtol=0)


@pytest.mark.parametrize("missing", ["mkldnn_reorder_conv2d_weight", None])
@torch.no_grad()
def test_without_onednns_operators_convolutions_give_the_same(
    missing: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing is None:  # they are there and give other numbers
        monkeypatch.setattr(onednn, "convolve", lambda layer, x, packed: 2 * x)
    else:
        monkeypatch.delattr(f"torch._C._nn.{missing}")
    onednn.available.cache_clear()
    layer, x = conv(5), draw(1, 64, 8, 8)
    assert algorithm(layer, 8, 8, QUICK) == "small"
    own = functional.conv2d(x, layer.weight, layer.bias, padding=2)
    torch.testing.assert_close(layer(x), own, atol=1e-5, rtol=0)
    onednn.available.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    layers = nn.Sequential(Conv2d(64, 64, 3, padding=1)).to(dtype)
    optimize(layers, QUICK)
    assert layers[0].optimized is None


def test_parameters_keep_their_names(unet: UNet) -> None:
    names = list(unet.state_dict())
    optimize(unet, QUICK)
    assert list(unet.state_dict()) == names


def test_the_bytes_of_a_plan_are_known_before(unet: UNet) -> None:
    expected = bytes_needed(unet, 32, 32, QUICK)
    optimize(unet, QUICK)
    with torch.inference_mode():
        unet(draw(1, 4, 32, 32), torch.full((1,), 400.0), Cond(draw(1, 7, 16)))
    fast = [layer.optimized for layer in unet.modules() if isinstance(layer, Conv2d)]
    layouts = [one.cached[1] for one in fast if isinstance(one, FastConv) and one.cached]
    assert layouts and sum(4 * layout.numel() for layout in layouts) == expected
    optimize(unet, None)
    assert not any(isinstance(getattr(part, "optimized", None), Fast) for part in unet.modules())


def test_a_decoder_needs_less_without_its_encoder() -> None:
    vae = VAE(VAEConfig(channels=(64, 64), layers=1))
    both = sum(m.weight.numel() for m in vae.modules() if isinstance(m, nn.Conv2d))
    assert 0 < bytes_needed(vae, 64, 64, CpuPlan()) < 4 * 4 * both / 1.5
