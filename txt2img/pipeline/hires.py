"""The first pass of a request → the start of the second, at a larger size."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from txt2img.images.canvas import canvas_of, larger_canvas
from txt2img.pipeline.decode import pixels_of, to_image
from txt2img.pipeline.init_image import (
    InitImage,
    encode,
    extra_channels,
    mask_cells,
    to_pixels,
)
from txt2img.pipeline.noise import vae_noise
from txt2img.pipeline.upscale import upscale_image, upscale_latents
from txt2img.request import Request
from txt2img.request.compat import Rules
from txt2img.request.hires import hires_sizes, second_pass, upscaler_of, without_hires
from txt2img.request.upscalers import Interpolation
from txt2img.weights.model import Model, device_of
from txt2img.weights.upscaler import Upscaler


@torch.inference_mode()
def enlarge(model: Model, requests: Sequence[Request], x: Tensor, rules: Rules) -> InitImage:
    """Enlarge the latents (B, C, h, w) of a first pass: themselves, or their decoded pictures.

    `rules` are the second pass'. Raises as `decode`, `upscale_image` and `encode`.
    """
    request, factor = requests[0], model.vae.config.factor
    scaled, final = hires_sizes(request)
    cells = scaled[1] // factor, scaled[0] // factor  # height, width
    ref = upscaler_of(request)
    how = ref.interpolation or model.adapters.upscalers[ref.name]
    if ref.interpolation is not None and ref.interpolation.of_latents:
        latents = upscale_latents(x.float(), ref.interpolation, cells)
    else:
        decoded = pixels_of(model, x.to(device_of(model)), request.tile)
        pictures = [to_image(one[:3]) for one in decoded]  # a fourth channel is opacity
        if request.image is not None:
            first = canvas_of(without_hires(request), rules, model.adapters.paths.images)
            pictures = [first.finish(picture) for picture in pictures]
        latents = torch.cat(
            [
                _encoded(
                    model, one_request, larger(picture, how, scaled), rules, (x.shape[1], *cells)
                )
                for one_request, picture in zip(requests, pictures, strict=True)
            ]
        )
    down, across = cells[0] - final[1] // factor, cells[1] - final[0] // factor  # to cut off
    rows = slice(down // 2, cells[0] - (down + 1) // 2)
    columns = slice(across // 2, cells[1] - (across + 1) // 2)
    init = InitImage(latents[..., rows, columns].to(x), draws=(int(rules.image.sampled), 0))
    return with_mask(model, request, rules, init)


def with_mask(model: Model, request: Request, rules: Rules, init: InitImage) -> InitImage:
    """The start of a second pass with the request's mask and what its network sees, if anything."""
    canvas, latent = None, init.latent
    assert latent is not None
    if request.image is not None:
        canvas = larger_canvas(request, rules, model.adapters.paths.images)
    extra = extra_channels(model, second_pass(request), canvas, [None] * len(latent))
    extra = None if extra is None else extra.to(latent)
    if canvas is None or canvas.mask is None:
        return replace(init, extra=extra)
    cells = mask_cells(canvas, rules, (latent.shape[-2], latent.shape[-1]))
    keeps = rules.image.keeps_of_inpainting or not model.family.inpaints
    mask = cells.to(latent) if keeps and cells is not None else None
    return replace(init, mask=mask, extra=extra, has_mask=True)


def larger(
    picture: Image.Image, how: Upscaler | Interpolation, size: tuple[int, int]
) -> Image.Image:
    """A picture at a larger size."""
    [last] = deque(upscale_image(picture, how, size), 1)
    assert last.image is not None
    return last.image


def _encoded(
    model: Model, request: Request, picture: Image.Image, rules: Rules, shape: tuple[int, int, int]
) -> Tensor:
    """The latent (1, C, h, w) of a request's picture: its mean, or a sample by its seed's noise."""
    second = second_pass(request)
    noise = vae_noise(second, rules, shape) if rules.image.sampled else None
    return encode(model, to_pixels(picture)[None], [noise], second)
