"""Winograd convolution F(4×4, 3×3): 3×3 filters of stride 1 with a quarter of the products.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", §4.3: an output tile of
4×4 costs 36 products a pair of channels instead of 144, computed as 36 matrix products with
channels last. The polynomials' points decide the rounding error: with 0, ±5/8, ±3/2 and infinity it
is a third of that with the paper's 0, ±1, ±2 (Barabasz et al. 2020, "Error Analysis and Improving
the Accuracy of Winograd Convolution").
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

SIDE = 16  # pixels: on smaller maps, multiplying costs less than reading 4 times the weights
CHANNELS = 64  # with fewer, the transforms cost more than the products that they save
TILE = 4  # height and width of an output tile
PATCH = 6  # height and width of its input
CHUNK = 32 * 2**20  # bytes of intermediate results at a time, so that they stay in the cache
SOME_ROWS = 32  # of a filter that are transformed at a time
NEAR, FAR = 0.625, 1.5
_ENDS, _SUM = NEAR**2 * FAR**2, NEAR**2 + FAR**2

Matrix = tuple[tuple[float, ...], ...]


def _input_row(point: float, other: float) -> tuple[float, ...]:
    """Coefficients of x (x + point) (x² − other²), from x⁰ up."""
    return 0.0, -point * other**2, -(other**2), point, 1.0, 0.0


def _filter_row(point: float, other: float) -> tuple[float, ...]:
    """A filter's value at a point, divided by the input row's value there."""
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
    """One matrix that transforms rows and columns of flattened squares."""
    one_way = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one_way, one_way).float()


INPUT_BOTH, FILTER_BOTH, OUTPUT_BOTH = map(both_ways, (INPUT, FILTER, OUTPUT))


def transformed(weight: Tensor) -> Tensor:
    """Transform a filter (O, I, 3, 3) to 36 matrices (36, I, O)."""
    out, channels = weight.shape[:2]
    flat = weight.detach().permute(2, 3, 1, 0).reshape(9, channels * out)
    return (FILTER_BOTH @ flat).view(PATCH * PATCH, channels, out)


def transformed_once(weight: Tensor) -> Tensor:
    """A filter as `transformed` gives it, twice as fast, for a convolution or two."""
    out, channels = weight.shape[:2]
    made = weight.new_empty(PATCH * PATCH, out * channels)
    count = SOME_ROWS * channels
    for squares, into in zip(weight.reshape(-1, 9).split(count), made.split(count, 1), strict=True):
        torch.mm(FILTER_BOTH, squares.t(), out=into)
    return made.view(-1, out, channels).transpose(1, 2)


def is_3x3(layer: nn.Conv2d, stride: tuple[int, ...]) -> bool:
    """Whether a convolution is 3×3, of this stride, in one group, padded by a pixel of zeros."""
    shape = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    return shape == ((3, 3), stride, (1, 1), (1, 1), 1) and layer.padding_mode == "zeros"


def is_narrow(layer: nn.Conv2d) -> bool:
    """Whether a convolution has too few channels for transforms to pay."""
    return min(layer.in_channels, layer.out_channels) < CHANNELS


def convolve(x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve x (B, I, H, W), padded by a pixel of zeros, by transformed filters: (B, O, H, W).

    The output is channels last in memory.
    """
    return convolve_by_parts(x, lambda: [matrices], matrices.shape[2], bias)


def convolve_by_parts(
    x: Tensor, parts: Callable[[], Iterable[Tensor]], out_channels: int, bias: Tensor | None
) -> Tensor:
    """Convolve as `convolve` by filters of some output channels after others.

    They are asked for again for each band of a large map.
    """
    batch, channels, height, width = x.shape
    rows, columns = (
        -(-height // TILE),
        -(-width // TILE),
    )  # of tiles
    padded = x.new_empty(batch, rows * TILE + 2, columns * TILE + 2, channels)
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    for edge in (slice(0, 1), slice(height + 1, None)):
        padded[:, edge] = 0.0
    for edge in (slice(0, 1), slice(width + 1, None)):
        padded[:, :, edge] = 0.0
    out = x.new_empty(batch, rows, TILE, columns, TILE, out_channels)
    row_bytes = 4 * PATCH**2 * (2 * channels + out_channels) * batch * columns
    bands = min(rows, -(-rows * row_bytes // CHUNK))
    bias = x.new_zeros(out_channels) if bias is None else bias
    for band in range(bands):
        top, bottom = rows * band // bands, rows * (band + 1) // bands
        part = padded[:, TILE * top : TILE * bottom + 2]
        out[:, top:bottom] = _band(part, parts(), bias).permute(0, 1, 3, 2, 4, 5)
    whole = out.view(batch, rows * TILE, columns * TILE, out_channels).permute(0, 3, 1, 2)
    inside = whole[:, :, :height, :width]
    return inside.contiguous(memory_format=torch.channels_last)


def _band(x: Tensor, parts: Iterable[Tensor], bias: Tensor) -> Tensor:
    """Convolve rows of tiles: (B, 4·rows + 2, 4·columns + 2, I) → (B, rows, columns, 4, 4, O)."""
    patches = x.unfold(1, PATCH, TILE).unfold(2, PATCH, TILE)  # (B, rows, columns, I, 6, 6)
    shape = patches.shape[:3]
    squares = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, PATCH * PATCH, x.shape[3])
    tiles = len(squares)
    inputs = torch.bmm(INPUT_BOTH.expand(tiles, -1, -1), squares)  # (tiles, 36, I)
    products = [torch.bmm(inputs.transpose(0, 1), some) for some in parts]  # (36, tiles, …)
    whole = products[0] if len(products) == 1 else torch.cat(products, dim=2)
    out = torch.baddbmm(bias, OUTPUT_BOTH.expand(tiles, -1, -1), whole.transpose(0, 1))
    return out.view(*shape, TILE, TILE, -1)  # of (tiles, 16, O)
