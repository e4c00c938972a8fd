"""Tiled upscaling of large pictures, in overlapping tiles with blended seams, to bound memory."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from txt2img.models.tiled_decode import starts, weights

OVERLAP = 32  # pixels of the small picture that neighbours share, at least
MARGIN = 8  # of them at each tile's edge that are thrown away: a network sees too little there


def tile_count(size: Sequence[int], tile: int) -> int:
    """The number of tiles of a picture of so many pixels, height and width."""
    return len(starts(size[0], tile, OVERLAP)) * len(starts(size[1], tile, OVERLAP))


def upscale_tiled(
    network: Callable[[Tensor], Tensor], image: Tensor, out: Tensor, tile: int
) -> Iterator[int]:
    """Fill `out` (3, s·H, s·W) with an image (3, H, W), both uint8; yield the tiles done.

    `network` sees a tile (1, 3, h, w) in 0…1 at a time. Only a strip of the result as high as a
    tile is held in floats.
    """
    (height, width), scale = image.shape[-2:], out.shape[-2] // image.shape[-2]
    rows, columns = starts(height, tile, OVERLAP), starts(width, tile, OVERLAP)
    down = weights(rows, height, tile, scale, MARGIN)
    across = weights(columns, width, tile, scale, MARGIN)
    strip = torch.zeros(len(out), min(tile, height) * scale, width * scale)
    done = 0
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            part = image[:, top : top + tile, left : left + tile]
            pixels = network(part[None].float() / 255)[0].float().cpu()  # (3, s·h, s·w)
            begin, (tall, wide) = left * scale, pixels.shape[-2:]
            share = down[i][top * scale :][:tall, None] * across[j][begin : begin + wide]
            strip[:, :tall, begin : begin + wide] += pixels * share
            done += 1
            yield done
        end = rows[i + 1] if i + 1 < len(rows) else height
        ready = (end - top) * scale
        levels = (strip[:, :ready] * 255).round().clamp(0, 255)
        out[:, top * scale : end * scale] = levels.to(torch.uint8)
        rest = strip[:, ready:].clone()  # what the next row of tiles adds to
        strip.zero_()
        strip[:, : rest.shape[1]] = rest
