"""Latents → pixels, by the first way that works: all at once, one by one, in tiles, on the CPU.

Each way is tried anew for each image, so that its bits do not depend on those before it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from txt2img.errors import Rejected
from txt2img.models.seamless import decode_tiled_seamless, seamless
from txt2img.models.tiling import TILE
from txt2img.models.vae import VAE
from txt2img.pipeline import cpu_speed
from txt2img.pipeline.estimates import activations
from txt2img.request.fields import Tile
from txt2img.system.device.memory import CPU, first_that_fits, free, moved_to, oom_as_error
from txt2img.weights.model import Model

LARGE = 1536 * 1536  # pixels; larger ones go through the VAE in tiles, unless tiling is off
BATCH_PIXELS = 2**22  # decoded at once; at 256 numbers each, some kernels cannot count more
CELL = 8  # pixels of a cell that tiles are measured by, whatever the VAE's own are
SMALLER = (48, 32, 24, 16)  # cells of tiles where memory is short
SHORT = "Memory is short: pictures pass the VAE in tiles, whose colours may differ a little"
TILED = "Out of memory while decoding: decoded in tiles instead"
ON_CPU = "Out of memory while decoding, even in tiles: decoded on the CPU instead"
BROKEN = "the decoder gave numbers that are no picture; nothing was saved"
DECODING = "decoding the picture"
FLOAT32 = "The decoder overflowed in half precision: decoded in float32 instead"


def pixels_of(model: Model, x: Tensor, tile: Tile | None = None) -> Tensor:
    """Decode finite latents (B, C, h, w) to pixels (B, 3, H, W), seamless along `tile`'s axes.

    A VAE with an alpha head adds a fourth channel, opacity. Rejected, OutOfMemory.
    """

    def release() -> None:
        if model.graphed:
            model.graphed.forget()  # recordings hold memory, too
        free()

    sides = [side * model.vae.config.factor for side in x.shape[-2:]]
    with oom_as_error(DECODING), vae_in_use(model, math.prod(sides)) as tiles:
        ways = (partial(_joined, attempt) for attempt in attempts(model, x, tile, tiles))
        cpu_speed.prepare_vae(model, sides)
        return first_that_fits(ways, DECODING, release)


def _joined(attempt: Callable[[], list[Tensor]]) -> Tensor:
    return torch.cat(attempt())


def attempts(
    model: Model, x: Tensor, tile: Tile | None = None, tiles: int = 0
) -> Iterator[Callable[[], list[Tensor]]]:
    """The ways to decode, each for when those before it ran out of memory; the later ones warn.

    `tiles` are the cells that tiles are high and wide from the start; 0: there are none.
    """
    memory, single = model.memory, one_by_one(x)
    device = next(model.vae.parameters()).device
    memory.used.pop("vae", None)
    if tiles:
        memory.used["vae"] = "tiled" if tiles == TILE else f"tiled by {tiles}"
    if device.type != "cpu" and len(x) > 1:
        parts = x.split(batch_limit(model, x))
        yield lambda: [_finite(model, some, tiles, tile) for some in parts]
    yield lambda: [_finite(model, one, tiles, tile) for one in single]
    if memory.tiling == "auto" and not tiles:
        memory.warn(TILED)
        memory.used["vae"] = "tiled"
        yield lambda: [_finite(model, one, TILE, tile) for one in single]
    if device.type != "cpu":
        memory.warn(ON_CPU)
        memory.used["vae"] = "tiled, cpu" if memory.tiling != "off" else "cpu"
        yield lambda: _on_cpu(model, single, tile)


@contextmanager
def vae_in_use(model: Model, pixels: int) -> Iterator[int]:
    """Keep the VAE on its device for a picture of so many pixels.

    Yields how many cells its tiles are high and wide, fewer where memory is short; 0 for a picture
    as a whole.
    """
    vae, placement = model.vae, model.memory.placement
    tiles = tile_size(model, pixels)
    at_once = min(pixels, (tiles * CELL) ** 2) if tiles else pixels
    itemsize = next(vae.parameters()).dtype.itemsize
    needed = partial(activations.of_vae, vae.config, at_once, itemsize)
    with placement.using("vae", vae, needed):
        yield tiles


def tile_size(model: Model, pixels: int) -> int:
    """How many cells the tiles of a picture are high and wide; 0 if it needs none."""
    memory, config = model.memory, model.vae.config
    is_large = memory.tiling == "auto" and pixels > LARGE
    start = TILE if memory.tiling == "on" or is_large else 0
    room = memory.placement.room_beside(model.vae) if memory.tiling != "off" else None
    if room is None:
        return start
    itemsize = next(model.vae.parameters()).dtype.itemsize
    sides = [TILE] if start else [0, TILE]
    for side in (*sides, *SMALLER):
        at_once = min(pixels, (side * CELL) ** 2) if side else pixels
        if activations.of_vae(config, at_once, itemsize) <= room:
            break
    if side != start:
        memory.warn(SHORT)
    return side


def batch_limit(model: Model, x: Tensor) -> int:
    """The number of latents to decode at once: at least one; a few fill a GPU."""
    return max(1, BATCH_PIXELS // (x.shape[-2] * x.shape[-1] * model.vae.config.factor**2))


def one_by_one(x: Tensor) -> list[Tensor]:
    """A batch (B, …) as B batches (1, …)."""
    return [x[i : i + 1] for i in range(len(x))]


def to_image(pixels: Tensor) -> Image.Image:
    """The image of pixels (3, H, W) in −1…1; with a fourth channel, it is RGBA."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def _on_cpu(model: Model, single: list[Tensor], tile: Tile | None) -> list[Tensor]:
    """Decode latents of one image each by the VAE in main memory and float32."""
    with moved_to(model.vae, CPU, torch.float32):
        tiles = TILE if model.memory.tiling != "off" else 0
        return [_finite(model, one.to(CPU), tiles, tile) for one in single]


def _finite(model: Model, x: Tensor, tiles: int, tile: Tile | None) -> Tensor:
    """Decode latents, in float32 if half precision overflows. Rejected if that does, too."""
    return finite_by_vae(model, lambda: _decode(model, x, tiles, tile), FLOAT32, BROKEN)


def finite_by_vae(model: Model, run: Callable[[], Tensor], overflow: str, broken: str) -> Tensor:
    """What the VAE gives in `run`; in float32, with a warning, if half precision overflows.

    Rejected, with the message `broken`, if float32 does, too.
    """
    result, weight = run(), next(model.vae.parameters())
    if bool(torch.isfinite(result).all()):
        return result
    if weight.dtype != torch.float32:
        model.memory.warn(overflow)
        with moved_to(model.vae, weight.device, torch.float32):
            result = run()
    if not bool(torch.isfinite(result).all()):
        raise Rejected(broken)
    return result


def _decode(model: Model, x: Tensor, tiles: int, tile: Tile | None) -> Tensor:
    """Pixels as the VAE gives them; tiles are put together in main memory."""
    vae, cells = model.vae, tiles // model.vae.config.patch
    decode = vae.decode_with_alpha if isinstance(vae, VAE) and vae.alpha else vae.decode
    if not tiles or max(x.shape[-2:]) <= cells:
        with seamless(vae, tile) if tile else nullcontext():
            return decode(x)
    return decode_tiled_seamless(
        lambda part: decode(part).to(CPU), x, vae.config.factor, tile, cells
    )
