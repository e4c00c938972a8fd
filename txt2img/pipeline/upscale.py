"""Upscale latents and pictures: by interpolation, or by a model in tiles.

Latents are interpolated by torch, under A1111's names; pictures by Pillow.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from txt2img.errors import OutOfMemory
from txt2img.models.tiling import UPSCALE_OVERLAP, tile_count, upscale_tiled
from txt2img.request import Request
from txt2img.request.hires import check_size, written_size
from txt2img.request.upscalers import Interpolation
from txt2img.system import resources
from txt2img.system.device.memory import free, oom_as_error
from txt2img.system.device.offload import free_memory
from txt2img.weights.model import Model
from txt2img.weights.upscaler import Upscaler

TILE_CPU, TILE_GPU = 256, 512  # pixels; a tile on a CPU takes long, and progress is told by tiles
TILE_MIN = 2 * UPSCALE_OVERLAP
MEMORY_PART = 0.5  # of the free memory, for a tile
LAYERS_HELD = 3  # maps of a network's widest layer, at the result's size, that are held at once
PASSES_MAX = 3  # as in A1111
# Of torch.nn.functional.interpolate: its mode, and whether it is antialiased.
LATENT_MODES: Mapping[Interpolation, tuple[str, bool]] = {
    Interpolation.LATENT: ("bilinear", False),
    Interpolation.LATENT_ANTIALIASED: ("bilinear", True),
    Interpolation.LATENT_BICUBIC: ("bicubic", False),
    Interpolation.LATENT_BICUBIC_ANTIALIASED: ("bicubic", True),
    Interpolation.LATENT_NEAREST: ("nearest", False),
    Interpolation.LATENT_NEAREST_EXACT: ("nearest-exact", False),
}
PILLOW: Mapping[Interpolation, Image.Resampling] = {
    Interpolation.LANCZOS: Image.Resampling.LANCZOS,
    Interpolation.BICUBIC: Image.Resampling.BICUBIC,
    Interpolation.NEAREST: Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class UpscaleStep:
    """Tiles done of all; the last step has the picture."""

    done: int
    total: int
    image: Image.Image | None = None


def upscale_latents(x: Tensor, how: Interpolation, size: tuple[int, int]) -> Tensor:
    """Latents (B, C, h', w') of latents (B, C, h, w), interpolated as A1111 and ComfyUI do."""
    mode, antialias = LATENT_MODES[how]
    return functional.interpolate(x, size=size, mode=mode, antialias=antialias)


def upscale_image(
    image: Image.Image,
    upscaler: Upscaler | Interpolation,
    size: tuple[int, int],
    tile: int | None = None,
) -> Iterator[UpscaleStep]:
    """Upscale a picture, 8 bits a channel, to a size; the last of the steps has the result.

    A model runs until the picture is at least as large, and Lanczos' filter takes it to the size.
    The transparency is interpolated. `tile` 0 does not cut it. BadRequest, OutOfMemory.
    """
    check_size(size)
    if isinstance(upscaler, Interpolation):
        yield UpscaleStep(1, 1, image.resize(size, PILLOW[upscaler]))
        return
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    result = image.convert("RGB")
    for _ in range(passes(upscaler, image.size, size)):
        out, steps = _run_model(result, upscaler, tile)
        yield from steps
        result = Image.fromarray(out.permute(1, 2, 0).numpy())
    result = result.resize(size, Image.Resampling.LANCZOS)  # a copy if it has that size
    if alpha is not None:
        result.putalpha(alpha.resize(size, Image.Resampling.LANCZOS))
    yield UpscaleStep(1, 1, result)


def upscale_for(model: Model, request: Request, image: Image.Image) -> Iterator[UpscaleStep]:
    """Upscale a finished picture as its resolved request asks; nothing if it does not.

    Raises as `upscale_image`.
    """
    ref = request.upscale
    if ref is not None:
        how = ref.interpolation or model.adapters.upscalers[ref.name]
        yield from upscale_image(image, how, written_size(request))


def passes(upscaler: Upscaler, size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """How often a model runs until a picture is at least as large as wanted."""
    factor = max(wanted[0] / size[0], wanted[1] / size[1])
    if upscaler.scale == 1 or factor <= upscaler.scale:
        return 1
    return min(math.ceil(math.log(factor, upscaler.scale) - 1e-6), PASSES_MAX)


def _run_model(
    image: Image.Image, upscaler: Upscaler, tile: int | None
) -> tuple[Tensor, Iterator[UpscaleStep]]:
    """The result (3, s·H, s·W), uint8, of a model on an RGB picture, filled by the steps."""
    width, height = image.size
    check_size((width * upscaler.scale, height * upscaler.scale))
    small = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), uint8
    out = torch.empty(3, height * upscaler.scale, width * upscaler.scale, dtype=torch.uint8)
    return out, _fill(out, small, upscaler, tile_size(upscaler, tile) or max(image.size))


def _fill(out: Tensor, small: Tensor, upscaler: Upscaler, side: int) -> Iterator[UpscaleStep]:
    """Fill `out`, in smaller tiles where memory runs out. OutOfMemory."""
    while True:
        total = tile_count(small.shape[-2:], side)
        try:
            with oom_as_error("upscaling"):
                for done in upscale_tiled(upscaler, small, out, side):
                    yield UpscaleStep(done, total)
            return
        except OutOfMemory:
            side = min(side, max(small.shape)) // 2
            if side < TILE_MIN or not upscaler.tiling:
                raise
        free()


def tile_size(upscaler: Upscaler, tile: int | None) -> int:
    """The side of a tile in pixels, as asked or as memory allows; 0: the picture is not cut."""
    if not upscaler.tiling:
        return 0
    if tile is not None:
        return tile
    device, weights = upscaler.network.device, upscaler.network.model.parameters()
    widest = max(weight.shape[0] for weight in weights)
    itemsize = upscaler.network.dtype.itemsize
    bytes_a_pixel = LAYERS_HELD * widest * upscaler.scale**2 * itemsize
    available = resources.available() if device.type == "cpu" else free_memory(device)
    side = TILE_CPU if device.type == "cpu" else TILE_GPU
    while available and side > TILE_MIN and side**2 * bytes_a_pixel > available * MEMORY_PART:
        side //= 2
    return side
