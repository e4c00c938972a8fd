"""How many pictures a card draws at once, if nobody says it: as many as its free memory holds."""

from collections.abc import Iterable

import torch

from txt2img.models.configs import VAEConfig
from txt2img.pipeline.batch import filled_requests
from txt2img.request import Request
from txt2img.system.device.offload import free_memory
from txt2img.weights.model import Model, device_of

MAX_BATCH = 16  # more are hardly quicker each, and all of them are lost by one that breaks off
SHARE = 0.7  # of what is free
# What a pass needs beside weights, in maps of the U-Net's largest size and first width: what is
# kept for the way up, and a feed-forward's eightfold width with what it is made of.
UNET_MAPS = 40
VAE_MAPS = 4  # of a picture's size and the decoder's second width


def auto_batch_size(model: Model, pictures: Iterable[Request]) -> int:
    """How many pictures like the first to draw at once; 1 on a CPU, or where it is not told."""
    free = free_memory(device_of(model))
    first = None if free is None else next(filled_requests(pictures, model, {}), None)
    return 1 if free is None or first is None else images_that_fit(model, first, free)


def images_that_fit(model: Model, request: Request, free: int) -> int:
    """How many pictures find room in so many bytes; at least one, at most MOST."""
    return max(1, min(MAX_BATCH, int(SHARE * free) // bytes_per_image(model, request)))


def bytes_per_image(model: Model, request: Request) -> int:
    """About how many bytes one picture takes beside the weights, under guidance."""
    pixels = (request.width or 0) * (request.height or 0)
    cells = pixels // model.vae.config.factor**2
    shape = model.vae.config
    width = shape.channels[:2][-1] if isinstance(shape, VAEConfig) else shape.width
    passes = 1 if request.cfg == 1 else 2
    unet = UNET_MAPS * passes * cells * model.network.config.channels[0] * _bytes(model.network)
    vae = VAE_MAPS * pixels * width * _bytes(model.vae)
    # a recorded network keeps its memory while pictures are decoded
    return max(unet + vae if model.graphed else max(unet, vae), 1)


def _bytes(network: torch.nn.Module) -> int:
    """How many bytes a number has in a network's precision."""
    return next(network.parameters()).dtype.itemsize
