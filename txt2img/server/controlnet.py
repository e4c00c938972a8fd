"""A1111's ControlNet API under /controlnet: names, and maps made by preprocessors.

Source: sd-webui-controlnet, scripts/api.py.
"""

import asyncio
from collections.abc import Mapping
from io import BytesIO

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from txt2img.errors import BadFile, BadRequest
from txt2img.images.image_file import pillow_errors
from txt2img.images.preprocess import preprocess
from txt2img.request.a1111_units import SLIDERS
from txt2img.request.preprocess import Preprocess, Preprocessor
from txt2img.server.answers import base64_of
from txt2img.server.bodies import json_object
from txt2img.server.drawing import png_of
from txt2img.server.sdapi import sent_picture
from txt2img.server.service import service_of
from txt2img.system.text import shown

RESOLUTIONS = range(64, 2049)  # pixels of a map's shorter side
DEFAULT_RESOLUTION = 512
DETECTED_MAX = 16  # pictures of one call


async def names(request: Request) -> Response:
    """GET /controlnet/version, model_list and module_list."""
    library = service_of(request).catalog.library
    answers = {
        "version": 3,
        "model_list": sorted({*library.controls, *library.ip_adapters}),
        "module_list": [one.label for one in Preprocessor if not one.model],
    }
    name = request.url.path.rpartition("/")[2]
    return JSONResponse({name: answers[name]})


async def detect(request: Request) -> Response:
    """POST /controlnet/detect: the map of each picture, its shorter side as long as is asked."""
    async with service_of(request).bodies.body(request) as body:
        values = await asyncio.to_thread(json_object, body)
        how, side = module_of(values), resolution_of(values)
        # The second name is that of the client webuiapi.
        pictures = values.get("controlnet_input_images") or values.get("controlnet_images")
        if not isinstance(pictures, list) or not 0 < len(pictures) <= DETECTED_MAX:
            raise BadRequest(
                f"controlnet_input_images is a list of 1 … {DETECTED_MAX} pictures as base64"
            )
        contents = [sent_picture({"image": one}) for one in pictures]
        maps = [await asyncio.to_thread(map_of, content, how, side) for content in contents]
    return JSONResponse({"images": [base64_of(one) for one in maps], "info": "Success"})


def module_of(values: Mapping[str, object]) -> Preprocess:
    """The preprocessor of a call's module and thresholds. BadRequest."""
    module = values.get("controlnet_module") or "none"
    if not isinstance(module, str):
        raise BadRequest(f"controlnet_module is a name, got {shown(module)}")
    kind = Preprocessor.parse(module)
    if kind.model:
        raise BadRequest(f"{shown(module)} needs a model, which is not offered here")
    numbers: list[float] = []
    for letter in "ab" if kind in SLIDERS else "":
        value = values.get(f"controlnet_threshold_{letter}")
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            numbers.append(value)
    return Preprocess(kind, tuple(numbers[: len(kind.numbers)]))


def resolution_of(values: Mapping[str, object]) -> int:
    """The length of a map's shorter side, in pixels. BadRequest."""
    side = values.get("controlnet_processor_res", DEFAULT_RESOLUTION)
    if side == -1:  # A1111's word for its default
        return DEFAULT_RESOLUTION
    if isinstance(side, bool) or not isinstance(side, int) or side not in RESOLUTIONS:
        raise BadRequest(
            f"controlnet_processor_res is {RESOLUTIONS.start} … {RESOLUTIONS[-1]}, "
            f"got {shown(side)}"
        )
    return side


def map_of(content: bytes, how: Preprocess, side: int) -> bytes:
    """The PNG of a picture's map. BadRequest for a damaged picture, Txt2imgError without OpenCV."""
    from PIL import Image

    try:
        with pillow_errors(), Image.open(BytesIO(content)) as image:
            picture = image.convert("RGB")
    except (ValueError, BadFile) as error:
        raise BadRequest(f"a picture of controlnet_input_images: {error}") from None
    factor = side / min(picture.size)
    width, height = (max(round(length * factor), 1) for length in picture.size)
    if max(width, height) > RESOLUTIONS[-1] * 4:
        raise BadRequest(f"a map of {width:,}x{height:,} pixels is too long")
    way = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX
    picture = picture.resize((width, height), way)
    return png_of(picture if how.name is Preprocessor.NONE else preprocess(picture, how))


ROUTES = [
    Route("/controlnet/detect", detect, methods=["POST"]),
    *(Route(f"/controlnet/{name}", names) for name in ("version", "model_list", "module_list")),
]
