"""Circular padding: what is drawn has no edges along the axes that are tiled."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import TinyConfig, UNetConfig, VAEConfig
from txt2img.models.layers import Conv2d
from txt2img.models.optimize.cpu import CpuPlan, optimize
from txt2img.models.optimize.cuda_graph import CudaGraphed
from txt2img.models.optimize.upcast import keep_stored_dtype
from txt2img.models.seamless import decode_tiled_seamless, seamless
from txt2img.models.taesd import TinyVAE
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.request.fields import Tile

PLANS = [None, CpuPlan(evaluations=30), CpuPlan(evaluations=30, pack=False), CpuPlan(evaluations=1)]
UNET = UNetConfig(
    channels=(64, 64), layers=1, attention=(True, False), depth=(1, 1), heads=(2, 2), cross_dim=16
)
SHIFTS = {Tile.X: (0, 4), Tile.Y: (4, 0), Tile.XY: (2, 6)}  # cells: whole ones of the smallest map


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def roll(x: Tensor, shift: tuple[int, int], factor: int = 1) -> Tensor:
    """x (B, C, H, W) moved in a circle, down and to the right."""
    return x.roll((factor * shift[0], factor * shift[1]), (-2, -1))


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(2)
    return UNet(UNET).eval()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(16, 24), (4, 4), (40, 32), (2, 2)])
@pytest.mark.parametrize(
    ("tile", "wide"), [("x", (1, 1, 0, 0)), ("y", (0, 0, 1, 1)), ("xy", (1,) * 4)]
)
@torch.no_grad()
def test_a_convolution_in_any_layout_sees_the_opposite_edge(
    plan: CpuPlan | None, stride: int, size: tuple[int, int], tile: str, wide: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(Conv2d(64, 64, 3, stride, padding=1))
    conv, x = layers[0], draw(2, 64, *size)
    optimize(layers, plan)
    with seamless(layers, Tile(tile)):
        out = layers(x)
    zeros = tuple(1 - pixels for pixels in wide)
    padded = functional.pad(functional.pad(x, wide, mode="circular"), zeros)
    own = functional.conv2d(padded, conv.weight, conv.bias, stride)
    torch.testing.assert_close(out, own, atol=1e-5, rtol=0)
    zero_padded = functional.conv2d(x, conv.weight, conv.bias, stride, padding=1)
    torch.testing.assert_close(layers(x), zero_padded, atol=1e-5, rtol=0)  # and after it as before


@torch.no_grad()
def test_filters_that_are_upcast_at_use_see_the_opposite_edge() -> None:
    torch.manual_seed(1)
    layers, x = nn.Sequential(Conv2d(8, 8, 3, padding=1)).bfloat16(), draw(1, 8, 6, 6)
    weight, bias = layers[0].weight.float(), layers[0].bias
    keep_stored_dtype(layers)
    layers[0].bias = nn.Parameter(bias.float())
    with seamless(layers, Tile.XY):
        out = layers(x)
    padded = functional.pad(x, (1,) * 4, mode="circular")
    torch.testing.assert_close(out, functional.conv2d(padded, weight, layers[0].bias))


@torch.no_grad()
def test_a_wave_stays_a_wave_under_a_filter() -> None:
    """Of a wave that fits the width, a filter changes strength and place alone, at edges too."""
    conv = nn.Sequential(Conv2d(1, 1, 3, padding=1, bias=False)).double()
    left, middle, right = 0.5, -1.0, 0.25
    weight = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    weight[0, 0, 1] = torch.tensor([left, middle, right])
    conv[0].weight.copy_(weight)
    turn = 2 * math.pi * 3 / 24  # three waves in 24 pixels
    at = torch.arange(24, dtype=torch.float64) * turn
    response = middle + left * complex(math.cos(turn), -math.sin(turn))
    response += right * complex(math.cos(turn), math.sin(turn))
    strength, angle = abs(response), math.atan2(response.imag, response.real)
    with seamless(conv, Tile.X):
        out = conv(at.cos().expand(1, 1, 8, 24))
    torch.testing.assert_close(out, (strength * (at + angle).cos()).expand(1, 1, 8, 24))


@pytest.mark.parametrize("tile", list(SHIFTS))
@pytest.mark.parametrize("plan", PLANS[:2])
@torch.no_grad()
def test_a_network_without_edges_moves_with_its_input(
    unet: UNet, tile: Tile, plan: CpuPlan | None
) -> None:
    x, cond = draw(1, 4, 16, 24), Cond(draw(1, 7, 16, seed=1))
    time = torch.tensor([500.0])
    optimize(unet, plan)
    moved = roll(x, SHIFTS[tile])
    plain, plain_moved = unet(x, time, cond), unet(moved, time, cond)
    with seamless(unet, tile):
        out, out_moved = unet(x, time, cond), unet(moved, time, cond)
    torch.testing.assert_close(out_moved, roll(out, SHIFTS[tile]), atol=2e-5, rtol=0)
    assert float((plain_moved - roll(plain, SHIFTS[tile])).abs().max()) > 1e-2
    torch.testing.assert_close(unet(x, time, cond), plain, atol=0, rtol=0)
    if tile is not Tile.XY:  # the other axis has its edges
        other = SHIFTS[tile][::-1]
        with seamless(unet, tile):
            odd = unet(roll(x, other), time, cond)
        assert float((odd - roll(out, other)).abs().max()) > 1e-2


@pytest.mark.parametrize("tile", list(SHIFTS))
@pytest.mark.parametrize("kind", ["vae", "taesd"])
@torch.no_grad()
def test_a_decoder_without_edges_moves_with_its_latent(tile: Tile, kind: str) -> None:
    torch.manual_seed(3)
    vae: VAE | TinyVAE = (
        VAE(VAEConfig(channels=(32, 32), layers=1, groups=8))
        if kind == "vae"
        else TinyVAE(TinyConfig(encoder=(), decoder=(1, 1), width=16))
    )
    x, factor = draw(1, 4, 16, 16), vae.config.factor
    with seamless(vae.eval(), tile):
        pixels, moved = vae.decode(x), vae.decode(roll(x, SHIFTS[tile]))
    torch.testing.assert_close(moved, roll(pixels, SHIFTS[tile], factor), atol=2e-5, rtol=0)


@pytest.mark.parametrize("tile", list(SHIFTS))
@pytest.mark.parametrize("size", [(80, 96), (48, 72), (8, 8)])
def test_large_latents_are_seamless_in_tiles_too(tile: Tile, size: tuple[int, int]) -> None:
    def decode(part: Tensor) -> Tensor:
        """Pixels that differ from tile to tile, as group norms make them."""
        shades = part.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return shades + 0.2 * part.mean()

    rows = torch.linspace(0, 2 * math.pi, size[0] + 1)[:-1, None].cos()
    columns = torch.linspace(0, 2 * math.pi, size[1] + 1)[:-1].sin()
    latent = (rows + columns)[None, None]
    pixels = decode_tiled_seamless(decode, latent, 2, tile)
    assert pixels.shape[-2:] == (2 * size[0], 2 * size[1])
    for axis, axes in ((-1, (Tile.X, Tile.XY)), (-2, (Tile.Y, Tile.XY))):
        if tile in axes:
            seam = (pixels.narrow(axis, 0, 1) - pixels.narrow(axis, -1, 1)).abs().max()
            inside = pixels.diff(dim=axis).abs().max()
            assert float(seam) <= 1.2 * float(inside)


def test_a_recording_is_of_one_padding(unet: UNet) -> None:
    recorded: list[Tile | None] = []

    def record(work):  # type: ignore[no-untyped-def]
        recorded.append(unet.tile)
        outputs = work()
        return lambda: None, outputs

    graphed, cond = CudaGraphed(unet, lambda line: None, record), Cond(draw(1, 7, 16, seed=1))
    x, time = draw(1, 4, 8, 8), torch.tensor([500.0])
    with torch.no_grad():
        plain = graphed(x, time, cond)
        with seamless(unet, Tile.X):
            tiled = graphed(x, time, cond)
        again = graphed(x, time, cond)
    assert recorded == [None, Tile.X]
    assert not torch.allclose(plain, tiled, atol=1e-3)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
