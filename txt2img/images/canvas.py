"""What is drawn on: a picture at the size asked for, its mask, and the pasting back afterwards.

A request's picture is cropped, filled or stretched to its size, or made larger by outpainting, or
(only masked) the part around the mask is enlarged. Masks are white where the picture is repainted.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, Literal

from txt2img.errors import BadRequest
from txt2img.images.input_image import as_mask, load_image, resize_image, with_edges
from txt2img.request import Request
from txt2img.request.compat import Rules
from txt2img.request.fields import SIDES
from txt2img.request.hires import CELL, hires_sizes, without_hires
from txt2img.request.input_image import ImagePaths, InpaintFill, Margins, Resize

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom
FEATHER = 40  # pixels of the picture that outpainting fades into, as in ComfyUI
ROUGHNESS = 24  # levels of noise over what is new
FILL_RADII = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))  # A1111's: blur, repeats


@dataclass(frozen=True)
class Canvas:
    """A picture to draw on, and how the drawing becomes the result."""

    image: "Image.Image"  # RGB, of the request's size
    mask: "Image.Image | None" = None  # L, likewise, as it was given
    blur: float = 0.0  # pixels by which the mask's border is softened
    blurs: Literal["boxes", "gaussian"] = "boxes"
    fill: InpaintFill | None = None
    whole: "Image.Image | None" = None  # the picture that `box` is a part of, RGB
    box: Box | None = None  # where the drawing goes in `whole`
    paste_mask: "Image.Image | None" = None  # L, of `whole` or `image`: what of the drawing is seen

    @cached_property
    def soft_mask(self) -> "Image.Image | None":
        """The mask with its border softened."""
        return None if self.mask is None else blurred(self.mask, self.blur, self.blurs)

    @property
    def empty(self) -> bool:
        """Whether nothing is to be repainted."""
        return self.mask is not None and self.mask.getextrema() == (0, 0)

    @property
    def start(self) -> "Image.Image":
        """The pixels to begin from: the picture, what is masked filled from around it if asked."""
        if self.fill is not InpaintFill.FILL or self.soft_mask is None:
            return self.image
        return filled_from_around(self.image, self.soft_mask)

    @property
    def untouched(self) -> "Image.Image":
        """The result where nothing is drawn."""
        return self.image if self.whole is None else self.whole

    def finish(self, drawn: "Image.Image") -> "Image.Image":
        """The result: the drawing where the mask is, every other pixel as it was."""
        from PIL import Image

        if self.whole is not None and self.box is not None:
            left, top, right, bottom = self.box
            placed = self.whole.convert(drawn.mode)
            size = right - left, bottom - top
            placed.paste(drawn.resize(size, Image.Resampling.LANCZOS), (left, top))
            drawn = placed
        if self.paste_mask is None:
            return drawn
        return Image.composite(drawn, self.untouched.convert(drawn.mode), self.paste_mask)


def canvas_of(request: Request, rules: Rules, paths: ImagePaths) -> Canvas:
    """The canvas of a filled request that names a picture. BadFile, BadRequest."""
    assert request.image is not None
    picture = load_image(request.image, paths)
    image, mask = picture.rgb(), mask_of(request, paths)
    blur = rules.image.mask_blur if request.mask_blur is None else request.mask_blur
    canvas = Canvas(image, mask, blur, rules.image.blurs, request.inpaint_fill)
    if request.only_masked is not None:
        return _part(canvas, request, request.only_masked)
    size = request.width or 0, request.height or 0
    if request.outpaint is not None:
        canvas = _outpainted(canvas, request, request.outpaint)
    else:
        canvas = _resized(canvas, *size, request.resize)
    return _pasting(canvas, rules)


def _pasting(canvas: Canvas, rules: Rules) -> Canvas:
    """The canvas that puts its own pixels back, where a program does that."""
    if canvas.soft_mask is None or not rules.image.pastes:
        return canvas
    return replace(canvas, paste_mask=_paste_mask(canvas.soft_mask))


def larger_canvas(request: Request, rules: Rules, paths: ImagePaths) -> Canvas:
    """The canvas of a filled request's second pass: its picture and mask at the larger size.

    It is cropped as the first pass is, and the border is as soft in proportion. Raises as
    `canvas_of`.
    """
    (width, height), (across, down) = hires_sizes(request)
    whole = replace(without_hires(request), width=width, height=height)
    canvas = canvas_of(whole, rules, paths)
    left, top = (width - across) // (2 * CELL) * CELL, (height - down) // (2 * CELL) * CELL
    box = left, top, left + across, top + down
    image, mask = canvas.image.crop(box), canvas.mask and canvas.mask.crop(box)
    by = width / (request.width or width)
    return _pasting(Canvas(image, mask, canvas.blur * by, canvas.blurs, canvas.fill), rules)


def mask_of(request: Request, paths: ImagePaths) -> "Image.Image | None":
    """The mask of a request's picture, at the picture's size; None for none. BadFile."""
    from PIL import Image, ImageOps

    assert request.image is not None
    picture = load_image(request.image, paths)
    if request.mask is not None:
        mask = as_mask(load_image(request.mask, paths))
        if mask.size != picture.size:
            mask = mask.resize(picture.size, Image.Resampling.BICUBIC)
    elif picture.pixels.mode == "RGBA":
        mask = ImageOps.invert(picture.pixels.getchannel("A"))
    else:
        return None
    return ImageOps.invert(mask) if request.mask_invert else mask


def _resized(canvas: Canvas, width: int, height: int, how: Resize | None) -> Canvas:
    mask = None if canvas.mask is None else resize_image(canvas.mask, width, height, how)
    return replace(canvas, image=resize_image(canvas.image, width, height, how), mask=mask)


def _outpainted(canvas: Canvas, request: Request, margins: Margins) -> Canvas:
    """The picture with its edges drawn out and roughened, and a mask that fades into it."""
    from PIL import Image, ImageChops

    width = (request.width or 0) - margins.left - margins.right
    height = (request.height or 0) - margins.up - margins.down
    if min(width, height) < SIDES.step:
        raise BadRequest(
            f"--outpaint {margins} leaves {width}x{height} pixels of a canvas of "
            f"{request.width}x{request.height}; choose larger -W and -H, or leave them out"
        )
    inner = _resized(canvas, width, height, request.resize)
    mask = outpaint_mask((width, height), margins)
    if inner.mask is not None:
        inner_mask = Image.new("L", mask.size)
        inner_mask.paste(inner.mask, (margins.left, margins.up))
        mask = ImageChops.lighter(mask, inner_mask)
    image = with_edges(inner.image, margins)
    assert request.image is not None
    rough = roughened(image, inner.image, margins, request.image.hash)
    return replace(canvas, image=rough, mask=mask)


def outpaint_mask(size: tuple[int, int], margins: Margins) -> "Image.Image":
    """White in what is new, fading into a picture of `size` within FEATHER pixels of it."""
    from PIL import Image, ImageChops

    width, height = size
    feather = min(FEATHER, width // 4, height // 4)
    across = bytes(_fade(width, feather, bool(margins.left), bool(margins.right)))
    down = bytes(_fade(height, feather, bool(margins.up), bool(margins.down)))
    # The nearest new side decides, as in ComfyUI's ImagePadForOutpaint.
    inner = ImageChops.lighter(
        Image.frombytes("L", (width, 1), across).resize(size),
        Image.frombytes("L", (1, height), down).resize(size),
    )
    mask = Image.new(
        "L", (margins.left + width + margins.right, margins.up + height + margins.down), 255
    )
    mask.paste(inner, (margins.left, margins.up))
    return mask


def _fade(length: int, feather: int, first: bool, last: bool) -> list[int]:
    """Along one axis: 255 at the ends that grow, falling by the square to 0 within `feather`."""
    values = []
    for at in range(length):
        distance = min(at if first else length, length - 1 - at if last else length)
        values.append(round(255 * max(1 - distance / feather, 0) ** 2) if feather else 0)
    return values


def roughened(
    image: "Image.Image", inner: "Image.Image", margins: Margins, key: str
) -> "Image.Image":
    """The canvas with noise over what is new, by a key: drawn-out edges alone are stripes."""
    from PIL import Image, ImageChops

    noise = Image.frombytes(
        "RGB", image.size, Random(key).randbytes(3 * image.width * image.height)
    )
    noisy = ImageChops.add(image, noise, offset=-128)
    noisy.paste(inner, (margins.left, margins.up))
    return noisy


def _part(canvas: Canvas, request: Request, pad: int) -> Canvas:
    """The part of the picture around its mask, enlarged to the request's size. BadRequest."""
    from PIL import Image

    if canvas.mask is None:
        raise BadRequest("--only-masked needs a mask: give --mask, or a picture with transparency")
    if request.outpaint is not None:
        raise BadRequest("--only-masked draws a part of a picture, --outpaint around it; give one")
    width, height = request.width or 0, request.height or 0
    soft = canvas.soft_mask
    assert soft is not None
    bounds = soft.getbbox() or (0, 0, *canvas.image.size)
    box = part_around(bounds, canvas.image.size, (width, height), pad)
    lanczos = Image.Resampling.LANCZOS
    return replace(
        canvas,
        image=canvas.image.crop(box).resize((width, height), lanczos),
        mask=canvas.mask.crop(box).resize((width, height), Image.Resampling.BICUBIC),
        blur=canvas.blur * width / (box[2] - box[0]),
        whole=canvas.image,
        box=box,
        paste_mask=soft,
    )


def part_around(bounds: Box, size: tuple[int, int], drawn: tuple[int, int], pad: int) -> Box:
    """The bounds with padding, grown towards the shape of what is drawn, within the picture."""
    left, top = max(bounds[0] - pad, 0), max(bounds[1] - pad, 0)
    right, bottom = min(bounds[2] + pad, size[0]), min(bounds[3] + pad, size[1])
    width, height = right - left, bottom - top
    if width * drawn[1] < height * drawn[0]:
        left, right = _grown(left, right, round(height * drawn[0] / drawn[1]), size[0])
    else:
        top, bottom = _grown(top, bottom, round(width * drawn[1] / drawn[0]), size[1])
    return left, top, right, bottom


def _grown(low: int, high: int, length: int, most: int) -> tuple[int, int]:
    """An interval of `length`, or of all there is, around another one."""
    length = min(max(length, high - low), most)
    start = min(max(low - (length - (high - low)) // 2, 0), most - length)
    return start, start + length


def blurred(
    mask: "Image.Image", pixels: float, how: Literal["boxes", "gaussian"] = "boxes"
) -> "Image.Image":
    """The mask with its border softened by a Gaussian."""
    from PIL import ImageFilter

    if how == "gaussian" and pixels:
        return _sampled_gaussian(mask, pixels)
    return mask.filter(ImageFilter.GaussianBlur(pixels)) if pixels else mask


def _sampled_gaussian(mask: "Image.Image", sigma: float) -> "Image.Image":
    """The mask blurred as by OpenCV across, then down, with A1111's size (processing.py)."""
    import numpy as np
    from PIL import Image

    weights = _fixed_gaussian(sigma, radius := int(2.5 * sigma + 0.5))
    levels = np.asarray(mask)
    for _ in range(2):
        levels = levels.T  # the first axis is blurred
        padded = np.pad(levels.astype(np.int32), ((radius, radius), (0, 0)), mode="reflect")
        total = np.zeros(levels.shape, np.int32)
        for i, weight in enumerate(weights):
            total += weight * padded[i : i + len(levels)]
        levels = ((total + 128) >> 8).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(levels))


def _fixed_gaussian(sigma: float, radius: int) -> list[int]:
    """OpenCV's weights of bytes, of 256 in all: each is rounded with the error of those before."""
    values = [math.exp(-(x**2) / (2 * sigma**2)) for x in range(-radius, radius + 1)]
    half, error = list[int](), 0.0
    for value in values[:radius]:
        exact = 256 * value / sum(values) + error
        half.append(round(exact))
        error = exact - half[-1]
    return [*half, 256 - 2 * sum(half), *half[::-1]]


def _paste_mask(soft: "Image.Image") -> "Image.Image":
    """What is seen of the drawing: all under the mask, fading out beyond its border, as in A1111.

    The drawing keeps what is not masked, so that it fades into its like.
    """
    return soft.point([min(2 * value, 255) for value in range(256)])


def filled_from_around(image: "Image.Image", mask: "Image.Image") -> "Image.Image":
    """The picture with what is masked filled by blurs of what is not, as in A1111's masking.py."""
    from PIL import Image, ImageFilter, ImageOps

    rest = Image.new("RGBa", image.size)
    rest.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    filled = Image.new("RGBA", image.size)
    for radius, repeats in FILL_RADII:
        layer = rest.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repeats):
            filled.alpha_composite(layer)
    return filled.convert("RGB")
