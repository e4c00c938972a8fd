"""Layers whose weights stay quantised in memory, as blocks of bytes, each unpacked when it is used.

What adapters change is added to the unpacked weight, which is exact where a merge would have to
quantise again.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.layers import Conv2d, Linear

Unpack = Callable[[Tensor, torch.dtype], Tensor]  # blocks (n, bytes) → their values in a row
Change = Callable[[Tensor], Tensor]  # a weight in float32 → the weight with adapters


@cache
def rotation(group: int, device: torch.device) -> Tensor:
    """ConvRot's matrix of a group of inputs, a power of 4: symmetric, and its own inverse."""
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(1)  # a Hadamard matrix of equal row sums
    whole = torch.ones(1, 1)
    while len(whole) < group:
        whole = torch.kron(whole, four / 2)
    return whole.to(device)


def rotated(x: Tensor, group: int) -> Tensor:
    """x (…, i) with each group of its last axis rotated, computed in float32."""
    out: Tensor = x.float().unflatten(-1, (-1, group)) @ rotation(group, x.device)
    return out.flatten(-2).to(x.dtype)


class PackedWeight:
    """The computation of a layer by its unpacked weight, in its input's dtype.

    Blocks are bytes, as int8: transformers' T5 would cast its states to any other dtype of them. A
    weight that ConvRot rotated gives the same with inputs rotated alike, which are fewer numbers.
    """

    def __init__(self, shape: tuple[int, ...], unpack: Unpack, group: int = 0) -> None:
        self.shape, self.unpack, self.group = shape, unpack, group
        self.change: Change | None = None

    def weight(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of blocks (n, bytes), as adapters change it."""
        blocks = blocks.view(torch.uint8)
        if self.change is None and not self.group:
            return self.unpack(blocks, dtype).view(self.shape)
        weight = self.unpack(blocks, torch.float32).view(self.shape)
        if self.group:
            weight = rotated(weight, self.group)
        return (weight if self.change is None else self.change(weight)).to(dtype)

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, Linear | Conv2d)
        if self.group and self.change is None:
            weight = self.unpack(layer.weight.view(torch.uint8), x.dtype).view(self.shape)
            return functional.linear(rotated(x, self.group), weight, layer.bias)
        weight = self.weight(layer.weight, x.dtype)
        if isinstance(layer, Linear):
            return functional.linear(x, weight, layer.bias)
        return functional.conv2d(
            x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )


def pack(layer: nn.Module, blocks: tuple[int, int], unpack: Unpack, group: int = 0) -> None:
    """Make a layer's weight one of so many blocks of so many bytes, still to be loaded.

    `group` is the number of inputs that are rotated together, if any are.
    """
    assert isinstance(layer, Linear | Conv2d)
    layer.packed_shape = tuple(layer.weight.shape)
    layer.optimized = PackedWeight(layer.packed_shape, unpack, group)
    empty = torch.empty(blocks, dtype=torch.int8, device="meta")
    layer.weight = nn.Parameter(empty, requires_grad=False)


def packed_weight(layer: nn.Module) -> PackedWeight | None:
    """What unpacks a layer's weight; None where it is plain."""
    optimized = getattr(layer, "optimized", None)
    return optimized if isinstance(optimized, PackedWeight) else None


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
