"""Pictures that guide what is drawn, at its size: ControlNets' hints and IP-Adapters' masks."""

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

    BadFile, BadRequest.
    """
    return at_drawn_size(load_image(control.image, paths).rgb(), request, rules, paths)


def at_drawn_size(
    image: "Image.Image", request: Request, rules: Rules, paths: ImagePaths
) -> "Image.Image":
    """A picture of any mode at a filled request's size.

    Where a part of the picture is drawn alone, it is the same part. BadFile, BadRequest.
    """
    from PIL import Image

    size = request.width or 0, request.height or 0
    if request.only_masked is not None:
        canvas = canvas_of(request, rules, paths)
        whole = canvas.untouched.size
        part = resize_image(image, *whole, request.resize).crop(canvas.box)
        return part.resize(size, Image.Resampling.LANCZOS)
    return resize_image(image, *size, request.resize)
