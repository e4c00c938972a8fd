"""Sizes of a request's picture: as it is drawn, and as it is written."""

from txt2img.errors import BadRequest
from txt2img.request.hires import drawn_size
from txt2img.request.request import Request

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
