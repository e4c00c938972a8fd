"""A generated image with its latents, its request and its origin: what a file's record says."""

import os
from pathlib import Path
from typing import IO, Any

from PIL import Image
from torch import Tensor

from txt2img.images import formats, image_file, output
from txt2img.images.record import Origin
from txt2img.request import Request


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
