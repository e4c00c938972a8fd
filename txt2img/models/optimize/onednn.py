"""oneDNN products with weights packed once, by operators that torch does not promise.

torch's public operators pack a weight again at every call, which is much of the work for a small
map: packed, convolutions of 12×12 maps take 15 % less time in float32, and a whole U-Net in bf16
10 % less at 256×256 pixels (one core of an EPYC with AVX-512). to_mkldnn() is public but does not
pack. So private operators are used, in this file only, after a test that torch has them and that
they give what its public ones give.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 1024  # that a packed matrix is laid out for: one number for all, or bits would depend on it


@cache
def available(dtype: torch.dtype) -> bool:
    """Whether weights of a dtype can be packed here; without that nothing is."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        layer = nn.Conv2d(16, 16, 3, padding=1, dtype=dtype)
        x = torch.randn(1, 16, 4, 9, dtype=dtype)
        matrix, rows = layer.weight.flatten(1), x.view(4, 144)
        try:
            packed = convolve(layer, x, pack_filter(layer, x)), multiply(rows, pack_matrix(matrix))
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False
        expected = nn.Conv2d.forward(layer, x), functional.linear(rows, matrix)
    return all(
        (a - b).abs().max() < 0.02 * b.abs().max() for a, b in zip(packed, expected, strict=True)
    )


def pack_filter(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Pack a filter for inputs of x's shape and dtype."""
    # torch's types for it know neither groups nor shape.
    reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
    weight = layer.weight.detach().to(x.dtype).to_mkldnn()
    return reorder(weight, *_places(layer), layer.groups, list(x.shape))


def convolve(layer: nn.Conv2d, x: Tensor, packed: Tensor) -> Tensor:
    """A layer's convolution of x by its packed filter."""
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, packed, layer.bias, *_places(layer), layer.groups, "none", [], ""
    )
    return out


def _places(layer: nn.Conv2d) -> tuple[list[int], list[int], list[int]]:
    assert not isinstance(layer.padding, str)
    return list(layer.padding), list(layer.stride), list(layer.dilation)


def pack_matrix(matrix: Tensor) -> Tensor:
    """Pack a matrix (O, I)."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix, ROWS)
    return packed


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, I) times a packed matrix (O, I), plus the bias: (…, O)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out
