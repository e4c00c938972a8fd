"""Picture files for tests."""

from pathlib import Path

from PIL import Image

from txt2img.images import output
from txt2img.images.image_file import encode
from txt2img.images.record import Origin
from txt2img.request import Request


def save(
    image: Image.Image, path: Path, request: Request, origin: Origin, overwrite: bool = False
) -> None:
    """Write a picture with its record, as a run does."""
    output.write_file(encode(image, request, origin), path, overwrite)
