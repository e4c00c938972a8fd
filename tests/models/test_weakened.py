"""U-Nets that guidance weakens or FreeU raises, against diffusers' networks."""

import math

import pytest
import torch
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from diffusers.utils.torch_utils import fourier_filter
from torch import Tensor, nn
from torch.nn import functional

from tests.support import tiny
from txt2img.diffusion.conditioning import Cond
from txt2img.models.freeu import FreeU, freeu, low_scaled
from txt2img.models.perturbed import PerturbedUNet, blurred
from txt2img.models.unet import UNet
from txt2img.system.device.device import Device
from txt2img.weights.load import load

CPU = Device(torch.device("cpu"), torch.float32)
GENERATOR = torch.Generator().manual_seed(4)
X = torch.randn(2, 4, 16, 24, generator=GENERATOR)
TOKENS = torch.randn(2, 77, 32, generator=GENERATOR)
TIME = torch.tensor([501.0])


@pytest.fixture(scope="module")
def ours() -> UNet:
    """The tiny U-Net, in our code."""
    network = load(str(tiny.sd1().folder), CPU).network
    assert isinstance(network, UNet)
    return network.eval()


@pytest.fixture
def theirs() -> nn.Module:
    """The same in diffusers' code."""
    unet = tiny.sd1().unet
    yield unet
    unet.disable_freeu()


def close(got: Tensor, want: Tensor) -> None:
    """Equal but for the order of sums in float32."""
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5


@torch.no_grad()
def test_perturbed_attention_equals_diffusers(ours: UNet, theirs) -> None:
    attentions = [block.attn1 for block in theirs.mid_block.attentions[0].transformer_blocks]
    before = [attention.processor for attention in attentions]
    for attention in attentions:
        attention.set_processor(PAGIdentitySelfAttnProcessor2_0())
    both = theirs(torch.cat([X, X]), TIME, torch.cat([TOKENS, TOKENS])).sample
    for attention, processor in zip(attentions, before, strict=True):
        attention.set_processor(processor)
    plain, perturbed = both.chunk(2)
    weaker = PerturbedUNet(ours)
    close(weaker(X, TIME.expand(2), Cond(TOKENS)), perturbed)
    assert float((plain - perturbed).abs().max()) > 1e-4
    close(ours(X, TIME.expand(2), Cond(TOKENS)), plain)  # as it was


def blur(maps: Tensor, sigma: float) -> Tensor:
    """SEG-SDXL's gaussian_blur_2d, with a kernel for each side where they differ."""
    wide, kernels = math.ceil(6 * sigma), []
    for side in maps.shape[-2:]:
        size = min(wide + 1 - wide % 2, side - (side % 2 - 1))
        at = torch.linspace(-(size - 1) / 2, (size - 1) / 2, size)
        pdf = torch.exp(-0.5 * (at / sigma) ** 2)
        kernels.append(pdf / pdf.sum())
    kernel = torch.outer(*kernels).expand(maps.shape[1], 1, -1, -1)
    height, width = (len(one) // 2 for one in kernels)
    padded = functional.pad(maps, (width, width, height, height), mode="reflect")
    return functional.conv2d(padded, kernel, groups=maps.shape[1])


@pytest.mark.parametrize("sigma", [0.7, 3.0, 100.0, math.inf])
@torch.no_grad()
def test_smoothed_energy_equals_its_authors(ours: UNet, theirs, sigma: float) -> None:
    size = (8, 12)  # of the middle's map

    def smooth(_: nn.Module, __: object, q: Tensor) -> Tensor:
        if math.isinf(sigma):
            return q.mean(1, keepdim=True).expand_as(q)
        return blur(q.mT.unflatten(2, size), sigma).flatten(2).mT

    hooks = [
        block.attn1.to_q.register_forward_hook(smooth)
        for block in theirs.mid_block.attentions[0].transformer_blocks
    ]
    want = theirs(X, TIME, TOKENS).sample
    for hook in hooks:
        hook.remove()
    close(PerturbedUNet(ours, sigma)(X, TIME.expand(2), Cond(TOKENS)), want)


def test_a_blur_keeps_what_is_even() -> None:
    even = torch.full((1, 35, 3), 2.5)
    torch.testing.assert_close(blurred(even, (5, 7), 2.0), even)


@torch.no_grad()
def test_freeu_of_blocks_equals_diffusers(ours: UNet, theirs) -> None:
    plain = ours(X, TIME.expand(2), Cond(TOKENS))
    theirs.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    want = theirs(X, TIME, TOKENS).sample
    with freeu(ours, "1.3,1.4,0.9,0.2", "diffusers"):
        got = ours(X, TIME.expand(2), Cond(TOKENS))
    close(got, want)
    assert float((got - plain).abs().max()) > 1e-3
    assert torch.equal(ours(X, TIME.expand(2), Cond(TOKENS)), plain)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 3)])
def test_the_filter_equals_diffusers(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=GENERATOR)
    torch.testing.assert_close(low_scaled(x, 0.2), fourier_filter(x, 1, 0.2), rtol=1e-5, atol=1e-5)


def test_versions_of_freeu_are_its_authors() -> None:
    """By the channels of a map, as ComfyUI's nodes FreeU and FreeU_V2."""
    x, skip = torch.randn(2, 2, 64, 6, 6, generator=GENERATOR)
    mean = x.mean(1, keepdim=True)
    low = mean.flatten(1).min(1).values.reshape(2, 1, 1, 1)
    high = mean.flatten(1).max(1).values.reshape(2, 1, 1, 1)
    for version, scale in ((1, 1.4), (2, 0.4 * (mean - low) / (high - low) + 1)):
        up, lowered = FreeU((1.3, 1.4), (0.9, 0.2), version, (128, 64))(x, skip)
        torch.testing.assert_close(up[:, :32], x[:, :32] * scale)
        assert torch.equal(up[:, 32:], x[:, 32:])
        torch.testing.assert_close(lowered, fourier_filter(skip, 1, 0.2), rtol=1e-5, atol=1e-5)
        other = torch.ones(1, 32, 4, 4)
        assert FreeU((1.3, 1.4), (0.9, 0.2), version, (128, 64))(other, other) == (other, other)
