"""Larger pictures: the second pass, what A1111 calls hires. fix, and the size that is written."""

from dataclasses import replace
from typing import Any

from txt2img.errors import BadRequest
from txt2img.request.compat import Rules, rules, steps_of
from txt2img.request.input_image import ImageRef
from txt2img.request.request import HIRES, Request
from txt2img.request.upscalers import Interpolation, UpscalerRef

STRENGTH = 0.7  # of a request that is not filled
UPSCALER = UpscalerRef(Interpolation.LANCZOS.value)
CELL = 8  # pixels
FIRST_PASS = ImageRef("the first pass")


def check_hires(request: Request) -> None:
    """Raise BadRequest for a second pass without a size, or that cannot be drawn."""
    if request.hires is request.hires_width is request.hires_height is None:
        given = next(name for name in HIRES if getattr(request, name) is not None)
        name = given.replace("_", "-")
        raise BadRequest(f"{name} is of a second pass: say with hires how many times larger it is")
    for name in ("outpaint", "only_masked"):
        if getattr(request, name) is not None:
            raise BadRequest(f"hires enlarges a whole picture; leave out {name}, or draw it first")


def upscaler_of(request: Request) -> UpscalerRef:
    """What enlarges the first pass."""
    return request.hires_upscaler or UPSCALER


def hires_sizes(request: Request) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height that the first pass is enlarged to, and those left when it is cropped.

    In whole latent cells, as A1111 counts them (processing.py: calculate_target_resolution).
    BadRequest for a size that cannot be drawn.
    """
    width, height = request.width or 0, request.height or 0
    across, down = request.hires_width, request.hires_height
    if across is None and down is None:
        by = request.hires or 1.0
        scaled = final = (int(width * by), int(height * by))
    elif down is None or (across is not None and width / height < across / down):
        assert across is not None
        scaled = (across, across * height // width)
        final = (across, down or scaled[1])
    else:
        scaled = (down * width // height, down)
        final = (across or scaled[0], down)
    sizes = _in_cells(scaled), _in_cells(final)
    try:
        replace(request, width=sizes[1][0], height=sizes[1][1])
    except BadRequest as error:
        raise BadRequest(f"hires: {error}") from None
    return sizes


def drawn_size(request: Request) -> tuple[int, int]:
    """Width and height of a filled request's picture as it is drawn, after all passes."""
    if request.has_hires:
        return hires_sizes(request)[1]
    return request.width or 0, request.height or 0


def second_pass(request: Request) -> Request:
    """The second pass as a request of its own, that begins from the first one's picture."""
    width, height = drawn_size(request)
    return replace(
        without_hires(request),
        width=width,
        height=height,
        steps=request.hires_steps or request.steps,
        sigmas=None,
        image=FIRST_PASS,
        strength=STRENGTH if request.hires_strength is None else request.hires_strength,
    )


def without_hires(request: Request) -> Request:
    """The first pass alone."""
    none: dict[str, Any] = dict.fromkeys((*HIRES, "upscale"))
    return replace(request, **none)


def second_rules(request: Request) -> Rules:
    """The rules of the second pass: A1111, and we where steps are given, draw as many as those.

    Latents that are interpolated are not sampled.
    """
    program = rules(request)
    drawn = program.image.steps_drawn
    if drawn == "floor_plus_one" or (request.compat is None and request.hires_steps):
        drawn = "exact"
    how = upscaler_of(request).interpolation
    of_latents = how is not None and how.of_latents
    sampled = program.image.sampled and not of_latents
    return replace(program, image=replace(program.image, steps_drawn=drawn, sampled=sampled))


def second_steps(request: Request) -> int:
    """The steps that the second pass draws; 0 without one."""
    return steps_of(second_pass(request), second_rules(request)).drawn if request.has_hires else 0


def all_steps(request: Request) -> int:
    """The steps that all passes of a filled request draw."""
    return steps_of(request, rules(request)).drawn + second_steps(request)


def _in_cells(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // CELL * CELL, size[1] // CELL * CELL


PIXELS_MAX = 2**28  # of an upscaled picture: 16,384 x 16,384


def written_size(request: Request) -> tuple[int, int]:
    """Width and height of a filled, resolved request's picture file."""
    width, height = drawn_size(request)
    if request.upscale is None:
        return width, height
    by = request.upscale_by or 1.0
    return round(width * by), round(height * by)


def check_size(size: tuple[int, int]) -> None:
    """Raise BadRequest for an upscaled picture that is too large, or has no pixels."""
    width, height = size
    if width * height > PIXELS_MAX or min(size) < 1:
        raise BadRequest(
            f"upscaled to {width:,}x{height:,} pixels; at most {PIXELS_MAX:,} in all are possible"
        )
