"""3×3 convolutions of stride 1 with a quarter of the products: Winograd's F(4×4, 3×3).

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", §4.3: an output tile of
4×4 costs 36 products a pair of channels instead of 144. They are done as 36 matrix products, with
channels last. Which points the polynomials are taken at decides what rounding costs: with 0, ±5/8,
±3/2 and infinity it costs a third of what the paper's 0, ±1, ±2 do (Barabasz et al. 2020, "Error
Analysis and Improving the Accuracy of Winograd Convolution").
"""

import torch
from torch import Tensor

TILE = 4  # output pixels a tile is high and wide
PATCH = 6  # input pixels that it sees
CHUNK = 32 * 2**20  # bytes of what is made of tiles at a time: what stays near the processor
NEAR, FAR = 0.625, 1.5
_ENDS, _SUM = NEAR**2 * FAR**2, NEAR**2 + FAR**2

Matrix = tuple[tuple[float, ...], ...]


def _input_row(point: float, other: float) -> tuple[float, ...]:
    """The coefficients of x (x + point) (x² − other²), from x⁰ up."""
    return 0.0, -point * other**2, -(other**2), point, 1.0, 0.0


def _filter_row(point: float, other: float) -> tuple[float, ...]:
    """A filter's value at a point, over what the point's input row comes to there."""
    norm = 2 * point**2 * (point**2 - other**2)
    return 1 / norm, point / norm, point**2 / norm


INPUT: Matrix = (
    (_ENDS, 0.0, -_SUM, 0.0, 1.0, 0.0),  # (x² − near²) (x² − far²)
    _input_row(NEAR, FAR),
    _input_row(-NEAR, FAR),
    _input_row(FAR, NEAR),
    _input_row(-FAR, NEAR),
    (0.0, _ENDS, 0.0, -_SUM, 0.0, 1.0),
)
FILTER: Matrix = (
    (1 / _ENDS, 0.0, 0.0),
    _filter_row(NEAR, FAR),
    _filter_row(-NEAR, FAR),
    _filter_row(FAR, NEAR),
    _filter_row(-FAR, NEAR),
    (0.0, 0.0, 1.0),
)
OUTPUT: Matrix = tuple(
    (0.0**power, NEAR**power, (-NEAR) ** power, FAR**power, (-FAR) ** power, float(power == 3))
    for power in range(TILE)
)


def both_ways(matrix: Matrix) -> Tensor:
    """A transform of rows and columns at once, as one matrix on flattened squares."""
    one_way = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one_way, one_way).float()


INPUT_BOTH, FILTER_BOTH, OUTPUT_BOTH = map(both_ways, (INPUT, FILTER, OUTPUT))


def transformed(weight: Tensor) -> Tensor:
    """A filter (O, I, 3, 3) as the 36 matrices (36, I, O) that its convolution multiplies by."""
    out, channels = weight.shape[:2]
    flat = weight.detach().permute(2, 3, 1, 0).reshape(9, channels * out)
    return (FILTER_BOTH @ flat).view(PATCH * PATCH, channels, out)


def convolve(x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, I, H, W), padded by a pixel of zeros, under transformed filters: (B, O, H, W).

    The output's channels are last in memory, whatever the input's.
    """
    batch, channels, height, width = x.shape
    out_channels = matrices.shape[2]
    rows, columns = -(-height // TILE), -(-width // TILE)  # tiles, the last ones reach beyond
    seen = x.new_empty(batch, rows * TILE + 2, columns * TILE + 2, channels)
    seen[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    for edge in (slice(0, 1), slice(height + 1, None)):
        seen[:, edge] = 0.0
    for edge in (slice(0, 1), slice(width + 1, None)):
        seen[:, :, edge] = 0.0
    out = x.new_empty(batch, rows, TILE, columns, TILE, out_channels)
    a_row = 4 * PATCH**2 * (2 * channels + out_channels) * batch * columns  # bytes
    bands = min(rows, -(-rows * a_row // CHUNK))
    bias = x.new_zeros(out_channels) if bias is None else bias
    for band in range(bands):
        top, bottom = rows * band // bands, rows * (band + 1) // bands
        part = seen[:, TILE * top : TILE * bottom + 2]
        out[:, top:bottom] = _band(part, matrices, bias).permute(0, 1, 3, 2, 4, 5)
    whole = out.view(batch, rows * TILE, columns * TILE, out_channels).permute(0, 3, 1, 2)
    cut = whole[:, :, :height, :width]
    return cut.contiguous(memory_format=torch.channels_last)


def _band(x: Tensor, matrices: Tensor, bias: Tensor) -> Tensor:
    """Whole rows of tiles: (B, 4·rows + 2, 4·columns + 2, I) → (B, rows, columns, 4, 4, O)."""
    patches = x.unfold(1, PATCH, TILE).unfold(2, PATCH, TILE)  # (B, rows, columns, I, 6, 6)
    shape = patches.shape[:3]
    squares = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, PATCH * PATCH, x.shape[3])
    tiles = len(squares)
    inputs = torch.bmm(INPUT_BOTH.expand(tiles, -1, -1), squares)  # (tiles, 36, I)
    products = torch.bmm(inputs.transpose(0, 1), matrices)  # (36, tiles, O)
    out = torch.baddbmm(bias, OUTPUT_BOTH.expand(tiles, -1, -1), products.transpose(0, 1))
    return out.view(*shape, TILE, TILE, -1)  # of (tiles, 16, O)
