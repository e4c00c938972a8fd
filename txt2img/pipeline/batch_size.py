"""The automatic batch size: as many images as fit in a GPU's free memory."""

from collections.abc import Iterable

import torch

from txt2img.pipeline.batch import filled_requests
from txt2img.pipeline.estimates import activations
from txt2img.request import Request
from txt2img.request.hires import drawn_size
from txt2img.system.device.offload import free_memory
from txt2img.weights.model import Model, device_of

MAX_BATCH = 16  # larger batches are hardly faster, and lose more images if one breaks off
SHARE = 0.7  # of what is free


def auto_batch_size(model: Model, pictures: Iterable[Request]) -> int:
    """The batch size for images like the first on a GPU; 1 if its memory is unknown."""
    free = free_memory(device_of(model))
    first = None if free is None else next(filled_requests(pictures, model, {}), None)
    return 1 if free is None or first is None else images_that_fit(model, first, free)


def images_that_fit(model: Model, request: Request, free: int) -> int:
    """The number of images that fit in `free` bytes, 1 to MAX_BATCH."""
    return max(1, min(MAX_BATCH, int(SHARE * free) // bytes_per_image(model, request)))


def bytes_per_image(model: Model, request: Request) -> int:
    """Estimated bytes of one image beyond the weights, with guidance."""
    width, height = drawn_size(request)
    cells, rows = width * height // model.vae.config.factor**2, 1 if request.cfg == 1 else 2
    network = activations.of_network(model.family.network, cells, rows, _bytes(model.network))
    vae = activations.of_vae(model.vae.config, width * height, _bytes(model.vae))
    # CUDA graphs keep their memory while images are decoded
    return max(network + vae if model.graphed else max(network, vae), 1)


def _bytes(network: torch.nn.Module) -> int:
    """The bytes of a number in a network's dtype."""
    return next(network.parameters()).dtype.itemsize
