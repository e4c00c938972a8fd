"""Similarity of drawings to the original art: PSNR, edges, flat areas, background.

Pictures are tensors (3, H, W) in −1…1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 128  # pixels at which drawings and art are compared
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)  # of the art, for a drawing that has it a little smaller
BEST = 60.0  # dB of a perfect copy
SLOPE_QUANTILE = 0.99  # the slopes above it are the edges
FLAT = 2.0 / 127.5  # a slope below this cannot be seen
CORNER = 8  # pixels
MARGIN = 8  # pixels around a thing that its soft edge may reach
STRIP = 16  # of so many parts, the one on each edge that shows the ground only


@dataclass(frozen=True)
class Similarity:
    """Similarity of drawings to the art of their things."""

    prompts: int
    psnr: float  # dB, aligned: the mean
    psnr_tenth: float  # dB that nine of ten reach
    edges: float  # how steep the steepest slopes are: 1 is as steep as the art's
    flatness: float  # the share of even pixels: 1 is as many as the art's
    white: float  # levels of 255 that white grounds are off
    corners: float  # levels of 255 that white corners are off


def aligned_psnr(drawn: Tensor, art: Tensor) -> float:
    """dB of a drawing against art on white: the best over its scale, place and mirroring."""
    best = float("inf")
    picture = 0.5 - 0.5 * small(drawn)  # white is 0, so what lies around smaller art adds nothing
    energy = picture.square().sum()
    for scale in SCALES:
        side = round(SIDE * scale)
        whole = functional.interpolate(art[None], (side, side), mode="area")[0]
        for turned in (whole, whole.flip(-1)):
            piece = 0.5 - 0.5 * turned
            matches = functional.conv2d(picture[None], piece[None])
            best = min(best, float(energy + piece.square().sum() - 2.0 * matches.max()))
    mean = max(best / picture.numel(), 10.0 ** (-BEST / 10.0))
    return round(float(-10.0 * torch.log10(torch.tensor(mean))), 2)


def small(pixels: Tensor) -> Tensor:
    """A picture (3, SIDE, SIDE), averaged."""
    return functional.interpolate(pixels[None].float(), (SIDE, SIDE), mode="area")[0]


def slopes(pixels: Tensor) -> Tensor:
    """The size of each pixel's slope (H − 1, W − 1), the largest of its channels."""
    across = pixels[..., 1:, 1:] - pixels[..., 1:, :-1]
    down = pixels[..., 1:, 1:] - pixels[..., :-1, 1:]
    return torch.sqrt(across.square() + down.square()).amax(dim=0)


def edge_steepness(drawn: Tensor, art: Tensor) -> float:
    """The mean of the steepest slopes, as part of the art's."""
    tops = []
    for pixels in (drawn, art):
        values = slopes(pixels).flatten()
        count = max(round(values.numel() * (1.0 - SLOPE_QUANTILE)), 1)
        tops.append(float(values.topk(count).values.mean()))
    return tops[0] / max(tops[1], 1e-6)


def flatness(drawn: Tensor, art: Tensor) -> float:
    """The share of pixels without a slope, as part of the art's."""
    shares = [float((slopes(pixels) < FLAT).float().mean()) for pixels in (drawn, art)]
    return shares[0] / max(shares[1], 1e-6)


def off_white(drawn: Tensor, art: Tensor) -> tuple[float, float]:
    """Levels of 255 that a drawing is off white, where the art is: anywhere, and in corners."""
    thing = (art.amin(dim=0) < 1.0 - 1e-3).float()
    reach = 2 * MARGIN + 1
    near = functional.max_pool2d(thing[None], reach, 1, MARGIN)[0] > 0
    off = (1.0 - drawn.clamp(-1.0, 1.0)).mean(dim=0) * 127.5
    ends = (slice(None, CORNER), slice(-CORNER, None))
    corners = torch.stack([off[rows, columns].mean() for rows in ends for columns in ends])
    everywhere = float(off[~near].mean()) if bool((~near).any()) else 0.0
    return everywhere, float(corners.mean())


def ground_error(drawn: Tensor, true: Tensor) -> float:
    """Levels of 255 that the colour along the left and right edges is off, row by row."""
    width = max(drawn.shape[-1] // STRIP, 1)
    off = [pixels[..., :width].median(dim=-1).values for pixels in (drawn, true)]
    more = [pixels[..., -width:].median(dim=-1).values for pixels in (drawn, true)]
    return float((torch.stack([off[0] - off[1], more[0] - more[1]]).abs().mean()) * 127.5)


def similarity(drawn: Sequence[Tensor], art: Sequence[Tensor]) -> Similarity:
    """All measures of similarity of drawings to art on white."""
    pairs = list(zip(drawn, art, strict=True))
    values = sorted(aligned_psnr(one, other) for one, other in pairs)
    whites, corners = zip(*(off_white(one, other) for one, other in pairs), strict=True)
    return Similarity(
        prompts=len(values),
        psnr=round(mean(values), 2),
        psnr_tenth=values[len(values) // 10],
        edges=round(mean([edge_steepness(one, other) for one, other in pairs]), 3),
        flatness=round(mean([flatness(one, other) for one, other in pairs]), 3),
        white=round(mean(whites), 2),
        corners=round(mean(corners), 2),
    )


def mean(values: Sequence[float]) -> float:
    """The mean of numbers."""
    return sum(values) / max(len(values), 1)
