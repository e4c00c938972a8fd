"""A picture → the start of sampling: its latents, and the later levels of the same schedule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from txt2img.diffusion.levels import Level
from txt2img.errors import BadRequest, OutOfMemory, Rejected
from txt2img.images.input_image import InputImage, load_image, resize_image
from txt2img.models.seamless import AXES, HEIGHT, WIDTH
from txt2img.models.taesd import TinyVAE
from txt2img.models.tiled_decode import OVERLAP, encode_tiled
from txt2img.pipeline.noise import Shape, vae_noise
from txt2img.request import Request
from txt2img.request.compat import Rules
from txt2img.request.fields import Tile
from txt2img.system.device.memory import CPU, free, moved_to, oom_as_error
from txt2img.weights.model import Model

LARGE = 1536 * 1536  # pixels; larger pictures are encoded in tiles, unless tiling is off
TILED = "Out of memory while encoding the picture: encoded in tiles instead"
ON_CPU = "Out of memory while encoding the picture, even in tiles: encoded on the CPU instead"
FLOAT32 = "The encoder overflowed in half precision: encoded in float32 instead"
READING = "reading the picture"


@dataclass(frozen=True)
class InitImage:
    """The start of pictures drawn together: latents of what they begin from."""

    latent: Tensor  # (B, C, h, w), float32, scaled as the network sees them

    def noised(self, level: Level, noise: Tensor, scale: float) -> Tensor:
        """The latents at a level, with noise of standard deviation `scale`."""
        return level.alpha * self.latent + scale * noise


def load_picture(model: Model, request: Request) -> InputImage:
    """The picture that a request begins from. BadFile."""
    assert request.image is not None
    return load_image(request.image, model.adapters.paths.images)


def canvas(model: Model, request: Request) -> Image.Image:
    """The picture that a filled request begins from, at the request's size. BadFile."""
    picture = load_picture(model, request).rgb()
    return resize_image(picture, request.width or 0, request.height or 0, request.resize)


def init_image(
    model: Model, requests: Sequence[Request], rules: Rules, latent: Shape, device: torch.device
) -> InitImage | None:
    """Encode what filled requests of one batch key begin from; None for noise alone.

    BadFile, BadRequest, OutOfMemory, Rejected.
    """
    if requests[0].image is None:
        return None
    pixels = to_pixels(canvas(model, requests[0]))[None]
    noises = [vae_noise(request, rules, latent) for request in requests]
    encoded = encode(model, pixels, noises, requests[0])
    return InitImage(encoded.to(device))


def to_pixels(image: Image.Image) -> Tensor:
    """Pixels (3, H, W) in −1…1, float32, of an RGB image."""
    values = torch.from_numpy(np.asarray(image).copy())  # (H, W, 3)
    return values.permute(2, 0, 1).float() / 127.5 - 1


def encode(
    model: Model, pixels: Tensor, noises: Sequence[Tensor | None], request: Request
) -> Tensor:
    """Latents (B, C, h, w), float32, of pixels (1, 3, H, W): one sampled by each noise, or means.

    By the first way that works: as a whole, in tiles, on the CPU. BadRequest for a VAE without
    encoder; Rejected, OutOfMemory.
    """
    moments = encode_moments(model, pixels, request)
    if isinstance(model.vae, TinyVAE):
        return moments.expand(len(noises), -1, -1, -1)
    mean, log_variance = moments.chunk(2, dim=1)
    config, deviation = model.vae.config, torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
    sampled = [mean if noise is None else mean + deviation * noise.to(mean) for noise in noises]
    return (torch.cat(sampled) - config.shift) * config.scaling


def encode_moments(model: Model, pixels: Tensor, request: Request) -> Tensor:
    """Mean and log variance (1, 2·C, h, w) of a picture's unscaled latent; a TAESD's latent.

    Raises as `encode`.
    """
    if isinstance(model.vae, TinyVAE) and model.vae.encoder is None:
        raise BadRequest(
            "this TAESD has a decoder alone, which reads no picture; choose another --vae"
        )
    wrap = _cells_wrapped(request.tile, pixels, model.vae.config.factor)
    pixels = wrapped(pixels, [cells * model.vae.config.factor for cells in wrap])
    last_error: OutOfMemory | None = None
    with oom_as_error(READING), model.memory.placement.using("vae", model.vae):
        for attempt in _attempts(model, pixels):
            try:
                with oom_as_error(READING):
                    moments = attempt()
                    height, width = moments.shape[-2] - 2 * wrap[0], moments.shape[-1] - 2 * wrap[1]
                    return moments.narrow(-2, wrap[0], height).narrow(-1, wrap[1], width)
            except OutOfMemory as error:
                last_error = OutOfMemory(str(error))  # without the frames that hold the memory
            free()
    assert last_error is not None
    raise last_error


def _cells_wrapped(tile: Tile | None, pixels: Tensor, factor: int) -> tuple[int, int]:
    """Latent cells, down and across, that a seamless picture is continued by for the encoder."""
    height, width = (min(OVERLAP, side // factor) for side in pixels.shape[-2:])
    return height * (HEIGHT in AXES.get(tile, ())), width * (WIDTH in AXES.get(tile, ()))


def wrapped(pixels: Tensor, sides: Sequence[int]) -> Tensor:
    """Pixels (B, C, H, W) continued by their opposite edges: sides[0] up and down, then across."""
    return functional.pad(pixels, [sides[1], sides[1], sides[0], sides[0]], mode="circular")


def _attempts(model: Model, pixels: Tensor) -> Iterator[Callable[[], Tensor]]:
    """The ways to encode, each for when those before it ran out of memory; the later ones warn."""
    memory, device = model.memory, next(model.vae.parameters()).device
    tiled = memory.tiling == "on" or (
        memory.tiling == "auto" and pixels.shape[-2] * pixels.shape[-1] > LARGE
    )
    yield lambda: _finite(model, pixels, tiled)
    if memory.tiling == "auto" and not tiled:
        memory.warn(TILED)
        yield lambda: _finite(model, pixels, True)
    if device.type != "cpu":
        memory.warn(ON_CPU)
        yield lambda: _on_cpu(model, pixels)


def _on_cpu(model: Model, pixels: Tensor) -> Tensor:
    """Encode by the VAE in main memory and float32."""
    with moved_to(model.vae, CPU, torch.float32):
        return _finite(model, pixels, model.memory.tiling != "off")


def _finite(model: Model, pixels: Tensor, tiled: bool) -> Tensor:
    """Encode, in float32 if half precision overflows. Rejected if that does, too."""
    moments = _encode(model, pixels, tiled)
    if bool(torch.isfinite(moments).all()):
        return moments
    weight = next(model.vae.parameters())
    if weight.dtype != torch.float32:
        model.memory.warn(FLOAT32)
        with moved_to(model.vae, weight.device, torch.float32):
            moments = _encode(model, pixels, tiled)
    if not bool(torch.isfinite(moments).all()):
        raise Rejected("the encoder gave numbers that are no picture; try --dtype float32")
    return moments


def _encode(model: Model, pixels: Tensor, tiled: bool) -> Tensor:
    """Moments in float32, as the VAE gives them."""
    vae, weight = model.vae, next(model.vae.parameters())

    def one(part: Tensor) -> Tensor:
        part = part.to(weight.device, weight.dtype)
        if isinstance(vae, TinyVAE):
            return vae.encode(part).float()
        return torch.cat(vae.moments(part), dim=1).float()

    return encode_tiled(one, pixels, vae.config.factor) if tiled else one(pixels)
