"""Reference pictures → latents that a network looks at beside the noisy one."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor

from txt2img.diffusion.conditioning import ScheduledCond
from txt2img.images.input_image import load_image, resize_image
from txt2img.pipeline.denoiser import ImageConds
from txt2img.pipeline.init_image import encode, to_pixels
from txt2img.request import Request
from txt2img.weights.model import Model

AREA = 1024 * 1024  # pixels of a reference at most


def with_references(
    model: Model, request: Request, conds: Sequence[ImageConds]
) -> list[ImageConds]:
    """Each image's conditions with the latents of the request's references. BadFile, OutOfMemory.

    They are seen with the negative prompt too, as in diffusers.
    """
    latents = tuple(reference_latents(model, request))

    def one(scheduled: ScheduledCond) -> ScheduledCond:
        return [(until, replace(cond, references=latents)) for until, cond in scheduled]

    return [tuple(map(one, image)) for image in conds]


def reference_latents(model: Model, request: Request) -> list[Tensor]:
    """The latents (1, C, h, w) of a request's references, in their order."""
    family = model.family
    multiple = family.vae.factor * family.network.multiple
    latents = []
    for ref in request.references:
        image = load_image(ref, model.adapters.paths.images).rgb()
        size = reference_size(image, family.reference_sizes, multiple)
        pixels = to_pixels(resize_image(image, *size))[None]
        latents.append(encode(model, pixels, [None], request))
    return latents


def reference_size(
    image: Image.Image, sizes: Sequence[tuple[int, int]], multiple: int
) -> tuple[int, int]:
    """Width and height that a reference is brought to: of `sizes` the one of its shape, if any.

    Else its own, within AREA, down to a multiple.
    """
    width, height = image.size
    if sizes:
        return min(sizes, key=lambda size: abs(width / height - size[0] / size[1]))
    shrink = min(1.0, (AREA / (width * height)) ** 0.5)
    sides = (max(int(side * shrink) // multiple, 1) * multiple for side in (width, height))
    return next(sides), next(sides)
