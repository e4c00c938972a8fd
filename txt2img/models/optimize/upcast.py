"""Layers whose large weights keep their stored dtype in memory, each upcast while it is used.

A weight is upcast in pieces of at most PIECE bytes, so that little memory is needed besides.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.layers import Conv2d, FeedForward, Linear, Optimized

PIECE = 2**24  # bytes of a weight, once upcast
TOKENS = 1024  # of a feed-forward's at a time: its middle is eight times as wide as they are


def upcast_linear(layer: Linear, x: Tensor) -> Tensor:
    """A linear layer in its input's dtype, whatever its weight's."""
    parts = rows(layer.weight, x.dtype)
    if len(parts) == 1:
        return functional.linear(x, layer.weight.to(x.dtype), layer.bias)
    out = x.new_empty(*x.shape[:-1], layer.out_features)
    for part in parts:
        bias = None if layer.bias is None else layer.bias[part]
        out[..., part] = functional.linear(x, layer.weight[part].to(x.dtype), bias)
    return out


def upcast_conv2d(layer: Conv2d, x: Tensor) -> Tensor:
    """A convolution in its input's dtype, whatever its weight's."""
    outs = []
    for part in rows(layer.weight, x.dtype) if layer.groups == 1 else [slice(None)]:
        weight, bias = (
            layer.weight[part].to(x.dtype),
            None if layer.bias is None else layer.bias[part],
        )
        outs.append(
            functional.conv2d(
                x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        )
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=1)


def chunked_feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    """A feed-forward over some tokens at a time, on a CPU."""
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return layer.plain(x)
    flat = x.reshape(-1, x.shape[-1])
    return torch.cat([layer.plain(some) for some in flat.split(TOKENS)]).view(x.shape)


UPCAST: dict[type[nn.Module], Optimized] = {
    Linear: upcast_linear,
    Conv2d: upcast_conv2d,
    FeedForward: chunked_feed_forward,
}
# A network's first convolutions tell its dtype, and transformers' T5 takes that of `wo` for its
# states'.
EXCEPT = ("conv_in", ".wo")


def keep_stored_dtype(network: nn.Module, filters_only: bool = False) -> None:
    """Let weights keep their stored dtype: all, or only filters larger than 1×1.

    Those in EXCEPT stay wide.
    """
    for name, layer in network.named_modules():
        large_filter = isinstance(layer, Conv2d) and layer.kernel_size != (1, 1)
        keeps_dtype = large_filter or not filters_only
        if (
            isinstance(layer, Linear | Conv2d | FeedForward)
            and keeps_dtype
            and not any(one in name for one in EXCEPT)
        ):
            layer.optimized = UPCAST[type(layer)]


def keeps_stored_dtype(layer: nn.Module) -> bool:
    """Whether a layer's weight keeps its stored dtype."""
    if not isinstance(layer, Linear | Conv2d):
        return False
    return UPCAST[type(layer)] in (layer.optimized, getattr(layer.optimized, "plain", None))


def stored_dtype_weights(network: nn.Module) -> set[str]:
    """Names of the weights that keep their stored dtype."""
    return {f"{name}.weight" for name, part in network.named_modules() if keeps_stored_dtype(part)}


def to_float32(layer: nn.Module) -> None:
    """Give a convolution its filter in float32, if it keeps a stored dtype."""
    if isinstance(layer, Conv2d) and keeps_stored_dtype(layer):
        with torch.inference_mode(False):
            layer.weight = nn.Parameter(layer.weight.detach().float(), requires_grad=False)


def rows(weight: Tensor, dtype: torch.dtype) -> list[slice]:
    """Parts of a weight's first axis that are upcast to `dtype` one after the other."""
    if weight.device.type != "cpu" or weight.dtype == dtype:
        return [slice(None)]
    count = max(1, min(len(weight), -(-weight.numel() * dtype.itemsize // PIECE)))
    ends = [len(weight) * n // count for n in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]
