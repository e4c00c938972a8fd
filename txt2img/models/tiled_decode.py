"""Tiled decoding and encoding, in overlapping tiles with blended seams, to bound memory.

A tile's group norms see only its own pixels, so colours may differ a little from the whole.
"""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

TILE = 64  # latent cells a tile is high and wide
OVERLAP = 16  # latent cells that neighbours share, at least


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
