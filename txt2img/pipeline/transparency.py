"""Transparency: a picture's ground made even, another colour, or transparent.

A decoder with an alpha head says how opaque each pixel is. What lies behind is one colour in every
picture that such a model draws, or a gradient from top to bottom.
"""

import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from txt2img.pipeline.decode import to_image
from txt2img.request import Request
from txt2img.request.fields import Transparent

OPAQUE = 0.97  # an opacity beyond is whole
CLEAR = 0.03  # one below is none
GROUND_MIN = 0.02  # share of a picture that must be clear to tell the ground's colour
GROUND_SPREAD = 12 / 255  # of the clear pixels around their fit; beyond, the ground is a picture
FLAT = 10 / 255  # a gradient of less from top to bottom is none
SAMPLED = 2**16  # clear pixels, which suffice to measure that
WHITE = 0.965  # a ground whose channels are all above is white
FLOODED = 128  # in a map of 0 for the ground's colour, 255 for others
TOLERANCE = 24  # over all channels, of 255, from the border's colour that is the ground


def image_of(pixels: Tensor, request: Request) -> Image.Image:
    """The image of pixels (3, H, W) in −1…1, or of (4, H, W) with opacity in 0…1.

    With opacity the ground becomes exactly even, or what the request asks for: RGBA if transparent.
    """
    transparent, background = request.transparent, request.background
    if len(pixels) == 3:
        image = to_image(pixels)
        return from_border(image, background) if transparent is Transparent.BORDER else image
    colour, opacity = pixels[:3].clamp(-1, 1) / 2 + 0.5, pixels[3:]
    opacity = ((opacity - CLEAR) / (OPAQUE - CLEAR)).clamp(0, 1)
    ground = ground_of(colour, opacity)
    if ground is None:  # a picture up to its edges: there is nothing behind it
        return _image(colour).convert("RGBA" if transparent and not background else "RGB")
    thing = ((colour - (1 - opacity) * ground) / opacity.clamp(min=1e-3)).clamp(0, 1)
    if background is not None:
        ground = _colour(background).to(ground)
    elif transparent:
        thing = torch.where(opacity > 0, thing, torch.ones_like(thing))
        return _image(torch.cat([thing, opacity]))
    return _image(opacity * thing + (1 - opacity) * ground)


def ground_of(colour: Tensor, opacity: Tensor) -> Tensor | None:
    """The ground (3, H or 1, 1) behind a thing: one colour, or a gradient from top to bottom.

    None if too little of it is seen, or if it is neither.
    """
    clear = opacity[0] <= 0
    if clear.float().mean() < GROUND_MIN:
        return None
    height = colour.shape[-2]
    row = torch.linspace(-1, 1, height, device=colour.device)
    seen, at = colour[:, clear], row[:, None].expand_as(clear)[clear]
    middle = seen.median(dim=1).values
    if at.std() > 0.1:
        slope = ((seen - seen.mean(1, keepdim=True)) * (at - at.mean())).mean(1) / at.var()
    else:
        slope = torch.zeros_like(middle)
    if 2 * slope.abs().max() < FLAT:
        slope, centre = torch.zeros_like(middle), middle
    else:
        centre = (seen - slope[:, None] * at).median(dim=1).values
    rest = (seen - (centre[:, None] + slope[:, None] * at)).abs().amax(0)
    if rest[:: 1 + len(rest) // SAMPLED].quantile(0.9) > GROUND_SPREAD:
        return None
    if not slope.any():
        centre = torch.ones_like(centre) if centre.min() > WHITE else centre
        return (centre * 255).round()[:, None, None] / 255
    return (centre[:, None] + slope[:, None] * row).clamp(0, 1)[:, :, None]


def from_border(image: Image.Image, background: str | None = None) -> Image.Image:
    """The image without the even ground at its border: transparent, or of another colour.

    What is of the border's colour but enclosed by the thing stays.
    """
    width, height = image.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height)]
    edges.append((width - 1, 0, width, height))
    border = torch.cat(
        [torch.frombuffer(bytearray(image.crop(box).tobytes()), dtype=torch.uint8) for box in edges]
    )
    ground = tuple(border.view(-1, 3).median(dim=0).values.tolist())
    # A map of the ground's colour is flooded, since a mark in the picture may be a pixel's colour.
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
    other = (pixels.int() - torch.tensor(ground)).abs().sum(-1) > TOLERANCE
    canvas = Image.new("L", (width + 2, height + 2))  # so that all edges are connected
    canvas.paste(Image.fromarray((other * 255).to(torch.uint8).numpy()), (1, 1))
    ImageDraw.floodfill(canvas, (0, 0), FLOODED)
    mask = canvas.crop((1, 1, width + 1, height + 1)).point([255] * FLOODED + [0] + [255] * 127)
    if background is None:
        out = image.convert("RGBA")
        out.putalpha(mask)
        return out
    colour = ImageColor.getrgb(background)[:3]
    return Image.composite(image, Image.new("RGB", image.size, colour), mask)


def _colour(name: str) -> Tensor:
    """A colour's (3, 1, 1) in 0…1."""
    return torch.tensor(ImageColor.getrgb(name)[:3], dtype=torch.float32)[:, None, None] / 255


def _image(values: Tensor) -> Image.Image:
    """The image of values (3 or 4, H, W) in 0…1."""
    return to_image(2 * values - 1)
