"""A generated image with its latents, its request and its origin: what a file's record says."""

import os
import platform
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from torch import Tensor

from txt2img.images import formats, image_file, output
from txt2img.images.record import Origin
from txt2img.request import Request
from txt2img.system.device.device import describe
from txt2img.system.device_names import describe_dtypes
from txt2img.system.version import __version__
from txt2img.weights.model import Model, device_of


class GeneratedImage(Image.Image):
    """A Pillow image that knows how it was made; images derived from it do not."""

    def __init__(
        self, image: Image.Image, latent: Tensor, request: Request, origin: Origin
    ) -> None:
        super().__init__()
        self.__setstate__(image.__getstate__())
        self.latent = latent  # (C, h, w), float32
        self.request = request  # filled, and with the seed of this image
        self.origin = origin  # model and environment

    def save(
        self,
        fp: str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes],
        format: str | None = None,
        **params: Any,
    ) -> None:
        """Write the image with its record to a path, as the command does.

        With a file object, a format or options, Pillow writes it, without the record. Raises
        BadOutput, BadRequest.
        """
        path = Path(fp) if isinstance(fp, str | Path) and format is None and not params else None
        form = None if path is None else formats.by_suffix(path.name)
        if path is None or form is None:
            super().save(fp, format, **params)
        else:
            data = image_file.encode(self, self.request, self.origin, None, form)
            output.write_file(data, path, overwrite=True)


def origin(model: Model, used: dict[str, str] | None = None) -> Origin:
    """The model and the environment, with the fallbacks `used`, for the record of an image."""
    environment = {
        "txt2img": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": describe(device_of(model)),
        "dtype": precision(model),
    }
    return Origin(model.name, model.hash, environment | (used or {}))


def precision(model: Model) -> str:
    """The dtype of the networks, or of each where they differ, for records."""
    parts = {"unet": model.network, "vae": model.vae, "text": model.text.encoders[0]}
    names = {p: str(next(n.parameters()).dtype).removeprefix("torch.") for p, n in parts.items()}
    if model.memory.quantized:
        names["unet"] += f"/{model.memory.quantized}"
    return describe_dtypes(names)
