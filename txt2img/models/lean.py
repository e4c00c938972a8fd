"""Networks whose large weights stay in memory as they are stored, each upcast while it is used.

The modules stay the same, under the same names; only their forward casts the weight first.
"""

from torch import Tensor, nn
from torch.nn import functional


class LeanLinear(nn.Linear):
    """A linear layer that computes in its input's precision, whatever its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias)


class LeanConv2d(nn.Conv2d):
    """A convolution that computes in its input's precision, whatever its weight's."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, self.weight.to(x.dtype), self.bias)
        return out


LEAN: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LeanLinear, nn.Conv2d: LeanConv2d}


def slim(network: nn.Module) -> set[str]:
    """Make a network upcast at use; gives the names of the weights that may stay as stored.

    A network's first convolutions stay as they are: others ask them which precision it has.
    """
    for name, module in network.named_modules():
        if type(module) in LEAN and name.split(".")[-1] != "conv_in":
            module.__class__ = LEAN[type(module)]
    return lean_weights(network)


def lean_weights(network: nn.Module) -> set[str]:
    """The names of the weights that may stay as they are stored."""
    lean = tuple(LEAN.values())
    return {f"{name}.weight" for name, part in network.named_modules() if isinstance(part, lean)}
