"""Tiled decoding, encoding and upscaling, in overlapping tiles with blended seams: less memory.

A tile's group norms see only its own pixels, so colours may differ a little from the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

TILE = 64  # latent cells a tile is high and wide
OVERLAP = 16  # latent cells that neighbours share, at least
UPSCALE_OVERLAP = 32  # pixels of a small picture that neighbours share, at least
UPSCALE_MARGIN = 8  # of them at each tile's edge, thrown away: a network sees too little there


def decode_tiled(
    decode: Callable[[Tensor], Tensor],
    latent: Tensor,
    factor: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """Pixels (B, 3, factor·h, factor·w) of a latent (B, C, h, w); `decode` sees a tile at a time.

    A latent that fits into one tile is decoded whole.
    """
    height, width = latent.shape[-2:]
    if max(height, width) <= tile:
        return decode(latent)
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    down = weights(rows, height, tile, factor)
    across = weights(columns, width, tile, factor)
    canvas: Tensor | None = None
    for (i, y), (j, x) in product(enumerate(rows), enumerate(columns)):
        pixels = decode(latent[..., y : y + tile, x : x + tile])
        if canvas is None:
            canvas = pixels.new_zeros((*pixels.shape[:2], height * factor, width * factor))
        top, left = y * factor, x * factor
        part = slice(top, top + pixels.shape[-2]), slice(left, left + pixels.shape[-1])
        share = down[i][part[0], None] * across[j][part[1]]  # (H, W) of this tile
        canvas[..., part[0], part[1]] += pixels * share.to(pixels)
    assert canvas is not None
    return canvas


def encode_tiled(
    encode: Callable[[Tensor], Tensor],
    pixels: Tensor,
    factor: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> Tensor:
    """Latent (B, C, h, w) of pixels (B, 3, factor·h, factor·w); `encode` sees a tile at a time.

    A picture that fits into one tile of `tile` cells is encoded whole.
    """
    height, width = pixels.shape[-2] // factor, pixels.shape[-1] // factor
    if max(height, width) <= tile:
        return encode(pixels)
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    down, across = weights(rows, height, tile, 1), weights(columns, width, tile, 1)
    canvas: Tensor | None = None
    for (i, y), (j, x) in product(enumerate(rows), enumerate(columns)):
        top, left, side = y * factor, x * factor, tile * factor
        latent = encode(pixels[..., top : top + side, left : left + side])
        if canvas is None:
            canvas = latent.new_zeros((*latent.shape[:2], height, width))
        part = slice(y, y + latent.shape[-2]), slice(x, x + latent.shape[-1])
        share = down[i][part[0], None] * across[j][part[1]]  # (h, w) of this tile
        canvas[..., part[0], part[1]] += latent * share.to(latent)
    assert canvas is not None
    return canvas


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First cells of the fewest tiles that overlap by at least `overlap`, evenly spaced."""
    if length <= tile:
        return [0]
    gaps = -(-(length - tile) // (tile - overlap))
    return [round(i * (length - tile) / gaps) for i in range(gaps + 1)]


def weights(begins: list[int], length: int, tile: int, factor: int, margin: int = 0) -> Tensor:
    """Blending weights of each tile along one axis: (tiles, length·factor), columns sum to 1.

    Where neighbours overlap, one fades out as the other fades in; a tile's outermost `margin` cells
    there, which see too little of what is around them, count nothing.
    """
    pixel = torch.arange(length * factor, dtype=torch.float32) + 0.5
    shares = torch.ones(len(begins), length * factor)
    for i, begin in enumerate(begins[1:], start=1):
        low, high = (begin + margin) * factor, (begins[i - 1] + tile - margin) * factor
        fade = ((pixel - low) / (high - low)).clamp(0, 1)
        shares[i - 1] *= 1 - fade
        shares[i] *= fade
    return shares / shares.sum(0)


def tile_count(size: Sequence[int], tile: int) -> int:
    """The number of tiles of a picture of so many pixels, height and width."""
    return len(starts(size[0], tile, UPSCALE_OVERLAP)) * len(starts(size[1], tile, UPSCALE_OVERLAP))


def upscale_tiled(
    network: Callable[[Tensor], Tensor], image: Tensor, out: Tensor, tile: int
) -> Iterator[int]:
    """Fill `out` (3, s·H, s·W) with an image (3, H, W), both uint8; yield the tiles done.

    `network` sees a tile (1, 3, h, w) in 0…1 at a time. Only a strip of the result as high as a
    tile is held in floats.
    """
    (height, width), scale = image.shape[-2:], out.shape[-2] // image.shape[-2]
    rows, columns = starts(height, tile, UPSCALE_OVERLAP), starts(width, tile, UPSCALE_OVERLAP)
    down = weights(rows, height, tile, scale, UPSCALE_MARGIN)
    across = weights(columns, width, tile, scale, UPSCALE_MARGIN)
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
