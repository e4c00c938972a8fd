"""Layers whose weights stay quantised in memory, as blocks of bytes, each unpacked when it is used.

What adapters change is added to the unpacked weight, which is exact where a merge would have to
quantise again.
"""

import math
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.layers import Conv2d, Linear, is_pointwise
from txt2img.models.optimize import winograd

ROWS_VALUES = 2**20  # of a weight that are unpacked at a time on a CPU, and stay in the cache
TRANSFORMED = 2**21  # of a filter that is transformed, four times as many numbers

Unpack = Callable[[Tensor, Tensor], None]  # blocks (n, bytes), and where their values go
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


class _Scratch(threading.local):
    """Memory that weights are unpacked into, again and again: a thread's own."""

    memory: Tensor | None = None

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """So many numbers, which are the caller's until the next call."""
        if self.memory is None or self.memory.nbytes < count * dtype.itemsize:
            self.memory = None  # so that there are never two
            with torch.inference_mode(False):  # or it could not be written to outside of it
                self.memory = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        return self.memory[: count * dtype.itemsize].view(dtype)


_SCRATCH = _Scratch()


class PackedWeight:
    """The computation of a layer by its unpacked weight, in its input's dtype.

    Blocks are bytes, as int8: transformers' T5 would cast its states to any other dtype of them. A
    weight that ConvRot rotated gives the same with inputs rotated alike, which are fewer numbers.

    On a CPU a weight is unpacked some rows at a time, always into the same memory.
    """

    def __init__(self, shape: tuple[int, ...], unpack: Unpack, group: int = 0) -> None:
        self.shape, self.unpack, self.group = shape, unpack, group
        self.change: Change | None = None
        self.is_fast = False  # whether convolutions may be transformed: see optimize/cpu.py

    def weight(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight of blocks (n, bytes), as adapters change it."""
        is_plain = self.change is None and not self.group
        weight = self._unpacked(blocks, torch.float32 if not is_plain else dtype)
        if self.group:
            weight = rotated(weight, self.group)
        return (weight if self.change is None else self.change(weight)).to(dtype)

    def _unpacked(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight as it is stored, in memory of its own."""
        out = torch.empty(self.shape, dtype=dtype, device=blocks.device)
        self.unpack(blocks.view(torch.uint8), out.view(len(blocks), -1))
        return out

    def __call__(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, Linear | Conv2d)
        stays = self.change is None  # what is stored is what is computed with
        x = rotated(x, self.group) if self.group and stays else x
        in_place = stays and x.device.type == "cpu" and not torch.is_grad_enabled()
        if isinstance(layer, Linear):
            return self._linear(layer, x, in_place)
        if in_place and is_pointwise(layer):
            return self._linear(layer, x.permute(0, 2, 3, 1), True).permute(0, 3, 1, 2)
        if in_place and x.dtype == torch.float32 and layer.groups == 1:
            return self._convolution(layer, x)
        weight = self.weight(layer.weight, x.dtype)
        return functional.conv2d(
            x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    def _linear(self, layer: Linear | Conv2d, x: Tensor, in_place: bool) -> Tensor:
        """x (…, I) times the matrix, plus the bias: (…, O)."""
        if not in_place:
            stored = self._unpacked if self.change is None else self.weight
            return functional.linear(x, stored(layer.weight, x.dtype), layer.bias)
        flat = x.reshape(-1, x.shape[-1])
        out = flat.new_empty(len(flat), self.shape[0])
        for rows, weight in self._some_rows(layer.weight, x.dtype):
            part, matrix = out[:, rows], weight.flatten(1).t()
            if layer.bias is None:
                torch.mm(flat, matrix, out=part)
            else:
                torch.addmm(layer.bias[rows], flat, matrix, out=part)
        return out.view(*x.shape[:-1], -1)

    def _some_rows(
        self, blocks: Tensor, dtype: torch.dtype, most: int = ROWS_VALUES
    ) -> Iterator[tuple[slice, Tensor]]:
        """Some rows (outputs) of the stored weight at a time, of whole blocks."""
        row = math.prod(self.shape[1:])
        values = self.shape[0] * row // len(blocks)
        least = values // math.gcd(row, values)  # rows that are whole blocks
        count = max(1, most // row // least) * least
        for first in range(0, self.shape[0], count):
            rows = slice(first, min(first + count, self.shape[0]))
            part = blocks[rows.start * row // values : rows.stop * row // values]
            weight = _SCRATCH.take((rows.stop - rows.start) * row, dtype)
            self.unpack(part.view(torch.uint8), weight.view(-1, values))
            yield rows, weight.view(-1, *self.shape[1:])

    def _convolution(self, layer: Conv2d, x: Tensor) -> Tensor:
        """A float32 convolution, some channels of the output at a time."""
        squares = winograd.is_3x3(layer, (1, 1)) and not winograd.is_narrow(layer)
        if self.is_fast and squares and min(x.shape[-2:]) >= winograd.SIDE:
            return winograd.convolve_by_parts(
                x, partial(self._transformed, layer), self.shape[0], layer.bias
            )
        x = x.contiguous()  # for which oneDNN lays out filters faster
        assert not isinstance(layer.padding, str)
        parts = [
            functional.conv2d(
                x,
                some,
                None if layer.bias is None else layer.bias[rows],
                layer.stride,
                layer.padding,
                layer.dilation,
            )
            for rows, some in self._some_rows(layer.weight, x.dtype)
        ]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return whole.contiguous(memory_format=torch.channels_last) if self.is_fast else whole

    def _transformed(self, layer: Conv2d) -> Iterator[Tensor]:
        """A filter's matrices for Winograd's products, of some output channels at a time."""
        for _, some in self._some_rows(layer.weight, torch.float32, TRANSFORMED):
            yield winograd.transformed_once(some)


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
