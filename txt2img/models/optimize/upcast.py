"""Networks whose large weights stay in memory as they are stored, each upcast while it is used.

The modules stay the same, under the same names; only their forward casts the weight first, and no
more of it at a time than PIECE, so that little memory is in use beside the weights.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from txt2img.models.layers import FeedForward

PIECE = 2**24  # bytes of a weight, once upcast
TOKENS = 1024  # of a feed-forward's at a time: its middle is eight times as wide as they are


class LeanLinear(nn.Linear):
    """A linear layer that computes in its input's precision, whatever its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        parts = rows(self.weight, x.dtype)
        if len(parts) == 1:
            return functional.linear(x, self.weight.to(x.dtype), self.bias)
        out = x.new_empty(*x.shape[:-1], self.out_features)
        for part in parts:
            bias = None if self.bias is None else self.bias[part]
            out[..., part] = functional.linear(x, self.weight[part].to(x.dtype), bias)
        return out


class LeanConv2d(nn.Conv2d):
    """A convolution that computes in its input's precision, whatever its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        parts = rows(self.weight, x.dtype) if self.groups == 1 else [slice(None)]
        made = [
            self._conv_forward(
                x, self.weight[part].to(x.dtype), None if self.bias is None else self.bias[part]
            )
            for part in parts
        ]
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)


class LeanFeedForward(FeedForward):
    """A feed-forward over some tokens at a time, where memory is the processor's."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(flat)
        for some, done in zip(flat.split(TOKENS), out.split(TOKENS), strict=True):
            done.copy_(super().forward(some))
        return out.view(x.shape)


LEAN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LeanLinear,
    nn.Conv2d: LeanConv2d,
    FeedForward: LeanFeedForward,
}


def slim(network: nn.Module, filters_only: bool = False) -> None:
    """Make a network upcast at use what stays as it is stored: all, or its larger filters alone.

    A network's first convolutions stay as they are: others ask them which precision it has.
    """
    for name, module in network.named_modules():
        other = not isinstance(module, nn.Conv2d) or module.kernel_size == (1, 1)
        if type(module) not in LEAN or name.split(".")[-1] == "conv_in" or (filters_only and other):
            continue
        module.__class__ = LEAN[type(module)]


def widen(layer: nn.Module) -> None:
    """Give a layer its filter in float32 from now on, if that stayed as it is stored."""
    if isinstance(layer, LeanConv2d) and layer.weight.dtype != torch.float32:
        with torch.inference_mode(False):
            wide = layer.weight.detach().float()
            layer.weight = nn.Parameter(wide, requires_grad=False)


def lean_weights(network: nn.Module) -> set[str]:
    """The names of the weights that may stay as they are stored."""
    lean = LeanLinear, LeanConv2d
    return {f"{name}.weight" for name, part in network.named_modules() if isinstance(part, lean)}


def rows(weight: Tensor, dtype: torch.dtype) -> list[slice]:
    """The parts of a weight's first axis that are upcast to `dtype` one after the other."""
    if weight.device.type != "cpu" or weight.dtype == dtype:
        return [slice(None)]
    count = max(1, min(len(weight), -(-weight.numel() * dtype.itemsize // PIECE)))
    ends = [len(weight) * n // count for n in range(count + 1)]
    return [slice(*pair) for pair in pairwise(ends)]
