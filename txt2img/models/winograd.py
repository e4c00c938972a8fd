"""3×3 convolutions of stride 1 with a quarter of the products: Winograd's F(4×4, 3×3).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", §4.3: an output tile of
4×4 costs 36 products a pair of channels instead of 144. They are done as 36 matrix products.
"""

import torch
from torch import Tensor
from torch.nn import functional

TILE = 4  # output pixels a tile is high and wide
PATCH = 6  # input pixels that it sees
CHUNK = 24 * 2**20  # bytes of transformed input at a time: what stays near the processor

# The matrices of §4.3: of the input, of the filter, of the output.
INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
FILTER = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


def both_ways(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """A transform of rows and columns at once, as one matrix on flattened squares."""
    one_way = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one_way, one_way).float()


INPUT_BOTH, FILTER_BOTH, OUTPUT_BOTH = map(both_ways, (INPUT, FILTER, OUTPUT))


def transformed(weight: Tensor) -> Tensor:
    """A filter (O, I, 3, 3) as the 36 matrices (36, O, I) that its convolution multiplies by."""
    out, channels = weight.shape[:2]
    flat = weight.detach().reshape(out * channels, 9)
    return (FILTER_BOTH @ flat.T).view(PATCH * PATCH, out, channels)


def convolve(x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, I, H, W), padded by a pixel of zeros, under transformed filters: (B, O, H, W)."""
    batch, channels, height, width = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)  # tiles, the last ones reach beyond
    below, right = rows * TILE - height + 1, columns * TILE - width + 1
    x = functional.pad(x, (1, right, 1, below))
    out = x.new_empty(batch, matrices.shape[1], rows * TILE, columns * TILE)
    band = max(1, CHUNK // (4 * PATCH * PATCH * channels * batch * columns))  # rows of tiles
    for top in range(0, rows, band):
        bottom = min(top + band, rows)
        seen = x[:, :, TILE * top : TILE * bottom + 2]
        out[:, :, TILE * top : TILE * bottom] = _band(seen, matrices)
    if bias is not None:
        out += bias[:, None, None]
    return out[:, :, :height, :width]


def _band(x: Tensor, matrices: Tensor) -> Tensor:
    """Whole rows of tiles: (B, I, 4·rows + 2, 4·columns + 2) → (B, O, 4·rows, 4·columns)."""
    batch, channels = x.shape[:2]
    patches = x.unfold(2, PATCH, TILE).unfold(3, PATCH, TILE)  # (B, I, rows, columns, 6, 6)
    rows, columns = patches.shape[2:4]
    tiles = patches.permute(4, 5, 1, 0, 2, 3).reshape(PATCH * PATCH, -1)  # (36, I·B·tiles)
    products = matrices @ (INPUT_BOTH @ tiles).view(PATCH * PATCH, channels, -1)  # (36, O, B·tiles)
    squares = OUTPUT_BOTH @ products.view(PATCH * PATCH, -1)  # (16, O·B·tiles)
    squares = squares.view(TILE, TILE, -1, batch, rows, columns)
    return squares.permute(3, 2, 4, 0, 5, 1).reshape(batch, -1, rows * TILE, columns * TILE)
