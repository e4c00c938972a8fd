"""Prepared networks: the same outputs, the same weights, and what is worn is seen."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.guidance import Cond
from txt2img.models import prepared
from txt2img.models.layers import Attention, FeedForward
from txt2img.models.packed import Laid
from txt2img.models.prepared import Plan, PreparedConv, PreparedLinear, way_of
from txt2img.models.shapes import UNetConfig, VAEConfig
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE

SMALL = UNetConfig(
    channels=(64, 64), layers=1, attention=(True, False), depth=(1, 1), heads=(2, 2), cross_dim=16
)
QUICK = Plan(looks=30)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conv(kernel: int = 3, stride: int = 1, plan: Plan = QUICK) -> PreparedConv:
    """A prepared convolution of 64 channels."""
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Conv2d(64, 64, kernel, stride, padding=kernel // 2))
    prepared.prepare(layers, plan)
    made = layers[0]
    assert isinstance(made, PreparedConv)
    return made


@pytest.fixture
def unet() -> UNet:
    torch.manual_seed(2)
    return UNet(SMALL).eval()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("size", [(16, 16), (17, 22), (4, 4), (33, 40), (1, 5)])
@pytest.mark.parametrize("plan", [QUICK, Plan(looks=30, pack=False), Plan(looks=1)])
@torch.no_grad()
def test_a_prepared_convolution_gives_the_same(
    kernel: int, stride: int, size: tuple[int, int], plan: Plan
) -> None:
    layer, x = conv(kernel, stride, plan), draw(2, 64, *size)
    own = functional.conv2d(x, layer.weight, layer.bias, stride, padding=kernel // 2)
    torch.testing.assert_close(layer(x), own, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x[:1, :, ::2]), layer(x[:, :, ::2])[:1], atol=1e-5, rtol=0)


@pytest.fixture
def product() -> PreparedLinear:
    """A prepared product of 96 numbers to 64."""
    torch.manual_seed(6)
    layers = nn.Sequential(nn.Linear(96, 64))
    prepared.prepare(layers, QUICK)
    made = layers[0]
    assert isinstance(made, PreparedLinear)
    return made


@pytest.mark.parametrize(
    ("shape", "kept"), [((15,), False), ((2, 8), True), ((2, 8, 16), True), ((257,), False)]
)
@torch.no_grad()
def test_a_prepared_product_of_few_rows_gives_the_same(
    product: PreparedLinear, shape: tuple[int, ...], kept: bool
) -> None:
    x = draw(*shape, 96)
    own = functional.linear(x, product.weight, product.bias)
    torch.testing.assert_close(product(x), own, atol=1e-5, rtol=0)
    assert (product._made is not None) == kept
    other = draw(96, *shape, seed=1).movedim(0, -1)  # numbers far apart in memory
    own = functional.linear(other, product.weight, product.bias)
    torch.testing.assert_close(product(other), own, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch is without MKL")
@torch.no_grad()
def test_a_matrix_is_laid_out_for_the_rows_that_come(product: PreparedLinear) -> None:
    first = product(draw(20, 96))
    laid = product._made
    assert torch.equal(product(draw(20, 96)), first) and product._made is laid
    product(draw(40, 96))
    assert product._made is not laid
    assert torch.equal(product(draw(20, 96)), first)
    product.weight.mul_(2.0)
    twice = functional.linear(draw(20, 96), product.weight, product.bias)
    torch.testing.assert_close(product(draw(20, 96)), twice, atol=1e-5, rtol=0)


def test_a_product_that_learns_or_is_looked_at_once_keeps_nothing() -> None:
    layers = nn.Sequential(nn.Linear(96, 64))
    for plan in (Plan(looks=1), Plan(looks=30, pack=False)):
        prepared.prepare(layers, plan)
        with torch.no_grad():
            layers(draw(20, 96))
        assert layers[0]._made is None
    prepared.prepare(layers, QUICK)
    layers(draw(20, 96)).sum().backward()
    assert layers[0]._made is None and layers[0].weight.grad is not None


@torch.no_grad()
def test_without_mkl_a_matrix_stays_as_it_is(
    product: PreparedLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    x, layer = draw(20, 96), conv()
    torch.testing.assert_close(product(x), functional.linear(x, product.weight, product.bias))
    assert product._made is not None and product._made[1].data_ptr() == product.weight.data_ptr()
    x = draw(2, 64, 4, 4)
    own = functional.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), own, atol=1e-5, rtol=0)


def test_large_maps_are_transformed_and_small_ones_packed() -> None:
    def ways(height: int, width: int, plan: Plan) -> str:
        return way_of(conv(), height, width, plan)

    assert ways(16, 16, QUICK) == ways(64, 16, QUICK) == "winograd"
    assert ways(8, 64, QUICK) == ways(15, 15, QUICK) == "packed"
    assert ways(8, 64, Plan(looks=30, pack=False)) == ways(8, 64, Plan(looks=1)) == "small"
    assert ways(16, 16, Plan(looks=3)) == "packed"  # too few for the transform to pay
    assert ways(32, 32, Plan(looks=1)) == "winograd"
    assert ways(16, 16, Plan(looks=30, smallest=32)) == "packed"
    assert ways(8, 8, QUICK) == ways(4, 16, QUICK) == ways(1, 1, QUICK) == "columns"
    assert way_of(conv(stride=2), 16, 16, QUICK) == "columns"
    assert way_of(conv(kernel=5), 8, 8, QUICK) == "packed"
    assert ways(8, 8, Plan(looks=30, pack=False)) == ways(8, 8, Plan(looks=1)) == "small"
    assert way_of(conv(stride=2), 64, 64, QUICK) == "packed"
    assert way_of(conv(stride=2), 66, 64, QUICK) == "plain"
    assert way_of(nn.Conv2d(4, 64, 3, padding=1), 64, 64, QUICK) == "plain"


@pytest.mark.parametrize("size", [(16, 16), (4, 4), (9, 9)])
def test_a_changed_filter_is_laid_out_anew_and_back_to_the_same_bits(size: tuple[int, int]) -> None:
    layer, x = conv(), draw(1, 64, *size)
    with torch.inference_mode():
        before, own = layer(x), layer.weight.clone()
        layer.weight.copy_(2 * own)
        changed = functional.conv2d(x, layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(layer(x), changed, atol=1e-5, rtol=0)
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
    prepared.prepare(layers, QUICK)
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
    assert len(layers[0]._kept) == 1  # what nobody can ask for is forgotten


@torch.no_grad()
def test_a_feed_forward_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    layers, x = nn.Sequential(FeedForward(8)), draw(2, 7, 8)
    own = layers(x)
    prepared.prepare(layers, QUICK)
    monkeypatch.setattr(prepared, "TOKENS", 4)
    torch.testing.assert_close(layers(x), own, atol=1e-6, rtol=0)


def test_keys_follow_a_lora() -> None:
    torch.manual_seed(3)
    layers = nn.Sequential(Attention(8, 6, 2))
    x, context = draw(1, 5, 8), draw(1, 7, 6, seed=1)
    with torch.inference_mode():
        prepared.prepare(layers, QUICK)
        layers[0](x, context)
        layers[0].to_v.weight.copy_(-layers[0].to_v.weight)
        changed = layers[0](x, context)
        prepared.restore(layers)
        torch.testing.assert_close(changed, layers[0](x, context), atol=0, rtol=0)


@torch.inference_mode()
def test_a_prepared_unet_tells_the_same(unet: UNet) -> None:
    x, time, cond = draw(2, 4, 16, 16), torch.full((2,), 400.0), Cond(draw(2, 7, 16, seed=1))
    own = unet(x, time, cond)
    prepared.prepare(unet, QUICK)
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
    prepared.prepare(vae, QUICK)
    assert isinstance(vae.decoder.conv_in, PreparedConv)
    torch.testing.assert_close(vae.decode(latent), own, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_left_alone(dtype: torch.dtype) -> None:
    layers = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)).to(dtype)
    prepared.prepare(layers, QUICK)
    assert type(layers[0]) is nn.Conv2d


def test_parameters_keep_their_names(unet: UNet) -> None:
    names = list(unet.state_dict())
    prepared.prepare(unet, QUICK)
    assert list(unet.state_dict()) == names


def kept(layer: nn.Module) -> int:
    """Bytes of what a layer keeps besides its weight; MKL asks for more than it touches."""
    if not isinstance(layer, Laid) or layer._made is None:
        return 0
    (way, _), made = layer._made
    return 4 * (layer.weight if way[0] == "rows" else made).numel()


@pytest.mark.parametrize("side", [8, 32])
def test_what_a_plan_keeps_is_known_before(unet: UNet, side: int) -> None:
    expected = prepared.need(unet, side, side, QUICK)
    prepared.prepare(unet, QUICK)
    with torch.inference_mode():
        x, time = draw(2, 4, side, side), torch.full((2,), 400.0)
        unet(x, time, Cond(draw(2, 7, 16)))
    assert expected and sum(map(kept, unet.modules())) == expected
    prepared.prepare(unet, None)
    assert not any(isinstance(m, PreparedConv) or "_made" in m.__dict__ for m in unet.modules())


def test_a_decoder_needs_less_without_its_encoder() -> None:
    vae = VAE(VAEConfig(channels=(64, 64), layers=1))
    both = sum(m.weight.numel() for m in vae.modules() if isinstance(m, nn.Conv2d))
    assert 0 < prepared.need(vae, 64, 64, Plan()) < 4 * 4 * both / 1.5
