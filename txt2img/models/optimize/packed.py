"""Layers whose weights stay quantised in memory, as blocks of bytes, each unpacked when it is used.

What adapters change is added to the unpacked weight, which is exact where a merge would have to
quantise again.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.layers import Conv2d, Linear

Unpack = Callable[[Tensor, torch.dtype], Tensor]  # blocks (n, bytes) → their values in a row
Change = Callable[[Tensor], Tensor]  # a weight in float32 → the weight with adapters


class PackedWeight:
    """The computation of a layer by its unpacked weight, in its input's dtype."""

    def __init__(self, shape: tuple[int, ...], unpack: Unpack) -> None:
        self.shape, self.unpack = shape, unpack
        self.change: Change | None = None

    def weight(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of blocks (n, bytes), as adapters change it."""
        if self.change is None:
            return self.unpack(blocks, dtype).view(self.shape)
        return self.change(self.unpack(blocks, torch.float32).view(self.shape)).to(dtype)

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, Linear | Conv2d)
        weight = self.weight(layer.weight, x.dtype)
        if isinstance(layer, Linear):
            return functional.linear(x, weight, layer.bias)
        return functional.conv2d(
            x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )


def pack(layer: nn.Module, blocks: tuple[int, int], unpack: Unpack) -> None:
    """Make a layer's weight one of so many blocks of so many bytes, still to be loaded."""
    assert isinstance(layer, Linear | Conv2d)
    layer.packed_shape = tuple(layer.weight.shape)
    layer.optimized = PackedWeight(layer.packed_shape, unpack)
    empty = torch.empty(blocks, dtype=torch.uint8, device="meta")
    layer.weight = nn.Parameter(empty, requires_grad=False)


def packed_weight(layer: nn.Module) -> PackedWeight | None:
    """What unpacks a layer's weight; None where it is plain."""
    own = getattr(layer, "optimized", None)
    return own if isinstance(own, PackedWeight) else None


def packable_weights(network: nn.Module) -> set[str]:
    """Names of the weights that may be packed: all of layers, but a network's very first.

    That one tells the network's dtype.
    """
    first = next((name for name, _ in network.named_parameters()), "")
    layers = (n for n, part in network.named_modules() if isinstance(part, Linear | Conv2d))
    return {f"{name}.weight" for name in layers} - {first}


def packed_weights(network: nn.Module) -> set[str]:
    """Names of the weights that are packed."""
    return {f"{name}.weight" for name, part in network.named_modules() if packed_weight(part)}
