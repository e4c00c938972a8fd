"""Seamless tiling: circular padding, so that opposite edges of a picture continue each other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.tiling import OVERLAP, decode_tiled
from txt2img.models.tiling import TILE as TILE_CELLS
from txt2img.request.fields import Tile

HEIGHT, WIDTH = -2, -1  # of maps (B, C, H, W)
TILE = "tile"  # the attribute of a network that is seamless for now
AXES: dict[Tile | None, Sequence[int]] = {
    Tile.X: (WIDTH,),
    Tile.Y: (HEIGHT,),
    Tile.XY: (HEIGHT, WIDTH),
}


@contextmanager
def seamless(network: nn.Module, tile: Tile | None) -> Iterator[None]:
    """Pad a network's convolutions circularly along the axes of `tile`, for a while.

    Maps are padded by their opposite edges before each convolution and cropped after it: so this
    holds for every way to compute one (models/optimize).
    """
    axes = AXES.get(tile, ())
    convs = [part for part in network.modules() if isinstance(part, nn.Conv2d)] if axes else []
    hooks = []
    for conv in convs:
        if any(isinstance(padding, int) and padding for padding in conv.padding):
            hooks.append(conv.register_forward_pre_hook(_pad(axes)))
            hooks.append(conv.register_forward_hook(_crop(axes)))
    setattr(network, TILE, tile)  # a CUDA graph holds the padding that it was recorded with
    try:
        yield
    finally:
        setattr(network, TILE, None)
        for hook in hooks:
            hook.remove()


def _pad(axes: Sequence[int]) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
    """A hook that pads; the layer's own padding of zeros then reaches only what is cropped."""

    def hook(conv: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        assert isinstance(conv, nn.Conv2d)
        wide = [0, 0, 0, 0]  # left, right, above, below
        for axis in axes:
            pixels = int(conv.padding[axis]) * conv.stride[axis]
            wide[-2 * axis - 2] = wide[-2 * axis - 1] = pixels
        return functional.pad(inputs[0], wide, mode="circular")

    return hook


def _crop(axes: Sequence[int]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook that crops what lies beyond the edges."""

    def hook(conv: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        assert isinstance(conv, nn.Conv2d)
        for axis in axes:
            beyond = int(conv.padding[axis])
            out = out.narrow(axis, beyond, out.shape[axis] - 2 * beyond)
        return out

    return hook


def decode_tiled_seamless(
    decode: Callable[[Tensor], Tensor],
    latent: Tensor,
    factor: int,
    tile: Tile | None,
    cells: int = TILE_CELLS,
) -> Tensor:
    """`decode_tiled`, by tiles of `cells`, of a picture that is seamless along the axes of `tile`.

    The beginning is decoded once more beyond the end, and fades into itself.
    """
    axes, overlap = AXES.get(tile, ()), cells * OVERLAP // TILE_CELLS
    shared = {axis: min(overlap, latent.shape[axis]) for axis in axes}
    for axis, beginning in shared.items():
        latent = torch.cat([latent, latent.narrow(axis, 0, beginning)], axis)
    pixels = decode_tiled(decode, latent, factor, cells, overlap)
    for axis, beginning in shared.items():
        pixels = _joined(pixels, axis, factor * beginning)
    return pixels


def _joined(pixels: Tensor, axis: int, shared: int) -> Tensor:
    """Pixels whose last `shared` along an axis, which repeat the first, are blended into these."""
    length = pixels.shape[axis] - shared
    first, again = pixels.narrow(axis, 0, shared), pixels.narrow(axis, length, shared)
    fade = (torch.arange(shared, dtype=pixels.dtype, device=pixels.device) + 0.5) / shared
    fade = fade if axis == WIDTH else fade[:, None]
    blended = first * fade + again * (1 - fade)
    return torch.cat([blended, pixels.narrow(axis, shared, length - shared)], axis)
