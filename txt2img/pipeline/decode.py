"""Latents → pixels, whatever it takes: one by one, in tiles, in float32, on the CPU.

Each way is tried for each picture anew, so that its bits do not depend on those before it.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from txt2img.errors import OutOfMemory, Rejected
from txt2img.models.tiled_decode import decode_tiled
from txt2img.pipeline import cpu_speed
from txt2img.system.device.memory import CPU, free, moved_to, oom_as_error
from txt2img.weights.model import Model

LARGE = 1536 * 1536  # pixels; more are decoded in tiles, where that is left to the program
TOGETHER = 2**22  # pixels that are decoded at once; at 256 numbers each, not all kernels count more
TILED = "Out of memory while decoding: decoded in tiles instead"
ON_CPU = "Out of memory while decoding, even in tiles: decoded on the CPU instead"
FLOAT32 = "The decoder overflowed in half precision: decoded in float32 instead"

Way = Callable[[], list[Tensor]]


def pixels_of(model: Model, x: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) of finite latents (B, C, h, w). Rejected, OutOfMemory."""
    error: OutOfMemory | None = None
    with oom_as_error("decoding the picture"), model.memory.placement.using("vae", model.vae):
        cpu_speed.prepare_vae(model, x)
        for way in attempts(model, x):
            try:
                with oom_as_error("decoding the picture"):
                    return torch.cat(way())
            except OutOfMemory as short:
                error = OutOfMemory(str(short))  # without the frames that hold what filled memory
            if model.graphed:
                model.graphed.forget()  # recordings hold memory, too
            free()
    assert error is not None
    raise error


def attempts(model: Model, x: Tensor) -> Iterator[Way]:
    """The ways to decode, each for when memory is short for those before; the later are told."""
    memory = model.memory
    single = one_by_one(x)
    device = next(model.vae.parameters()).device
    tiles = use_tiling(model, x)
    memory.used.pop("vae", None)
    if tiles:
        memory.used["vae"] = "tiled"
    if device.type != "cpu" and len(x) > 1:
        yield lambda: [decoded(model, some, tiles) for some in x.split(batch_limit(model, x))]
    yield lambda: [decoded(model, one, tiles) for one in single]
    if memory.tiling == "auto" and not tiles:
        memory.warn(TILED)
        memory.used["vae"] = "tiled"
        yield lambda: [decoded(model, one, True) for one in single]
    if device.type != "cpu":
        memory.warn(ON_CPU)
        memory.used["vae"] = "tiled, cpu" if memory.tiling != "off" else "cpu"
        yield lambda: on_cpu(model, single)


def batch_limit(model: Model, x: Tensor) -> int:
    """How many of a batch's latents are decoded at once: one at least, and a few fill a card."""
    return max(1, TOGETHER // (x.shape[-2] * x.shape[-1] * model.vae.config.factor**2))


def use_tiling(model: Model, x: Tensor) -> bool:
    """Whether latents are to be decoded in tiles from the start."""
    cells = x.shape[-2] * x.shape[-1]
    large = cells * model.vae.config.factor**2 > LARGE
    return model.memory.tiling == "on" or (model.memory.tiling == "auto" and large)


def on_cpu(model: Model, single: list[Tensor]) -> list[Tensor]:
    """Pixels of latents of one picture each, by the VAE in main memory and float32."""
    with moved_to(model.vae, CPU, torch.float32):
        tiles = model.memory.tiling != "off"
        return [decoded(model, one.to(CPU), tiles) for one in single]


def one_by_one(x: Tensor) -> list[Tensor]:
    """A batch (B, …) as B batches (1, …)."""
    return [x[i : i + 1] for i in range(len(x))]


def decoded(model: Model, x: Tensor, tiles: bool) -> Tensor:
    """Pixels (B, 3, H, W) of latents; in float32 if half precision overflows, else Rejected."""
    pixels = _once(model, x, tiles)
    if bool(torch.isfinite(pixels).all()):
        return pixels
    weight = next(model.vae.parameters())
    if weight.dtype != torch.float32:
        model.memory.warn(FLOAT32)
        with moved_to(model.vae, weight.device, torch.float32):
            pixels = _once(model, x, tiles)
    if not bool(torch.isfinite(pixels).all()):
        raise Rejected("the decoder gave numbers that are no picture; nothing was saved")
    return pixels


def _once(model: Model, x: Tensor, tiles: bool) -> Tensor:
    """Pixels as the VAE gives them; in tiles, pixels are put together in main memory."""
    if not tiles:
        return model.vae.decode(x)
    return decode_tiled(lambda part: model.vae.decode(part).to(CPU), x, model.vae.config.factor)
