"""Hints of ControlNets: the pictures that they follow, at the size that is drawn."""

from typing import TYPE_CHECKING

from txt2img.images.canvas import canvas_of
from txt2img.images.input_image import load_image, resize_image
from txt2img.request import Request
from txt2img.request.compat import Rules
from txt2img.request.control import Control
from txt2img.request.input_image import ImagePaths

if TYPE_CHECKING:
    from PIL import Image


def hint_pixels(
    request: Request, control: Control, rules: Rules, paths: ImagePaths
) -> "Image.Image":
    """The picture of a filled request's ControlNet, RGB, at the request's size.

    Where a part of the picture is drawn alone, it is the same part. BadFile, BadRequest.
    """
    from PIL import Image

    image = load_image(control.image, paths).rgb()
    size = request.width or 0, request.height or 0
    if request.only_masked is not None:
        canvas = canvas_of(request, rules, paths)
        whole = canvas.untouched.size
        part = resize_image(image, *whole, request.resize).crop(canvas.box)
        return part.resize(size, Image.Resampling.LANCZOS)
    return resize_image(image, *size, request.resize)
