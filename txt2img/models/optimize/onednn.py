"""Layers that keep their weights once more as oneDNN multiplies them.

In bf16, which some processors multiply in hardware, laying out a large filter takes longer than its
product with a small map. A copy is made anew when the weights are others or were written to.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

PACKED_PIXELS = 1024  # of an output: above it, laying weights out is little beside multiplying
ROWS = 1024  # that the layout of a matrix is chosen for: one for all, or bits would depend on it


class Laid(nn.Module):
    """A layer with a weight, and what was last made of it."""

    weight: Tensor
    _made: tuple[object, Tensor] | None = None

    def laid_out(self, way: object, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` gives of the weight; made anew for another way or weight."""
        key = way, version(self.weight)
        if self._made is None or self._made[0] != key:
            self._made = None  # so that there are never two
            self._made = key, make(self.weight.detach())
        return self._made[1]


class LaidConv(nn.Conv2d, Laid):
    """A convolution that can keep its filter in oneDNN's layout."""

    def packed(self, x: Tensor) -> Tensor:
        """By oneDNN with a filter that is laid out for x's shape, and kept."""
        assert not isinstance(self.padding, str)
        where = list(self.padding), list(self.stride), list(self.dilation)
        # torch's types for it know neither groups nor shape.
        reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
        shape = tuple(x.shape)

        def make(weight: Tensor) -> Tensor:
            weight = weight.to(x.dtype).to_mkldnn()
            return reorder(weight, *where, self.groups, list(shape))

        weight = self.laid_out(shape, make)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, *where, self.groups, "none", [], ""
        )
        return out


class PackedConv(LaidConv):
    """A convolution with a packed filter, or plainly where maps are large; channels last."""

    def forward(self, x: Tensor) -> Tensor:
        if not pays(x, self.weight):
            return super().forward(x)
        if is_mix(self):
            last = x.permute(0, 2, 3, 1)
            return product(self, last, lambda weight: weight.flatten(1)).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        return self.packed(x) if is_packed(self, *x.shape[-2:]) else super().forward(x)


class PackedLinear(nn.Linear, Laid):
    """A matrix product with a packed matrix."""

    def forward(self, x: Tensor) -> Tensor:
        if not pays(x, self.weight):
            return super().forward(x)
        return product(self, x, lambda weight: weight)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether a weight is laid out for this input: in bf16, and where no gradient is wanted.

    A quantised one multiplies in its own way.
    """
    half = x.dtype == weight.dtype == torch.bfloat16
    return half and is_plain(weight) and not torch.is_grad_enabled()


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is an ordinary tensor, and no quantised one."""
    return type(weight) in (Tensor, nn.Parameter)


def is_mix(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a matrix product over channels, pixel by pixel."""
    return conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1


def is_packed(conv: nn.Conv2d, height: int, width: int) -> bool:
    """Whether a packed filter, or matrix, pays in bf16 for maps of this size."""
    return is_mix(conv) or is_small(conv, height, width)


def is_small(conv: nn.Conv2d, height: int, width: int) -> bool:
    """Whether laying a filter out for a map of this size takes long beside multiplying."""
    return height * width <= PACKED_PIXELS * conv.stride[0] * conv.stride[1]


def product(
    layer: PackedConv | PackedLinear, x: Tensor, matrix: Callable[[Tensor], Tensor]
) -> Tensor:
    """x (…, I) times a layer's packed matrix (O, I), and its bias."""
    reorder: Callable[[Tensor, int], Tensor] = torch.ops.mkldnn._reorder_linear_weight
    weight = layer.laid_out("matrix", lambda weight: reorder(matrix(weight), ROWS))
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
    return out


def version(weight: Tensor) -> tuple[int, int]:
    """What changes when a tensor is written to or replaced; inference tensors are not tracked.

    One that is replaced has to be freed after the new one is there, or that may lie in its place.
    """
    return address(weight), 0 if weight.is_inference() else weight._version


def address(weight: Tensor) -> int:
    """Where a weight lies; of a quantised one, made of several tensors, which object it is."""
    return weight.data_ptr() if is_plain(weight) else id(weight)
