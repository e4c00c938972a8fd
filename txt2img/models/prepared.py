"""Networks made ready to draw on a CPU: the same modules, with weights laid out once for it.

`prepare` gives modules quicker forwards, which compute the same but for rounding, and which see by
the weights' versions that a LoRA was merged or taken off. State dicts and parameters stay what
they were. Where gradients are wanted the modules' own forwards run.
"""

import torch
from torch import Tensor, nn

from txt2img.models import winograd
from txt2img.models.layers import Attention, attention

WINOGRAD_SIDE = 16  # pixels: below it, multiplying costs less than reading 4 times the weights
WINOGRAD_CHANNELS = 64  # below it, the transforms cost more than the products that they save
WINOGRAD_PIXELS = 128 * 128  # above it, only with many channels
MANY_CHANNELS = 256


class PreparedConv(nn.Conv2d):
    """A 3×3 convolution of stride 1 that goes through Winograd's transforms where that pays."""

    _made: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.float32 or not self._pays(x):
            return super().forward(x)
        return winograd.convolve(x, self._matrices(), self.bias)

    def _pays(self, x: Tensor) -> bool:
        """Decided by sizes alone, so that a picture's bits depend on nothing else."""
        pixels, channels = x.shape[-2] * x.shape[-1], min(self.in_channels, self.out_channels)
        enough = WINOGRAD_CHANNELS if pixels <= WINOGRAD_PIXELS else MANY_CHANNELS
        return min(x.shape[-2:]) >= WINOGRAD_SIDE and channels >= enough

    def _matrices(self) -> Tensor:
        """The filter's transform, made anew when the filter has changed."""
        now = version(self.weight)
        if self._made is None or self._made[0] != now:
            self._made = now, winograd.transformed(self.weight)
        return self._made[1]


class PreparedAttention(Attention):
    """Attention that keeps the keys and values of the last context: a prompt's, for all steps."""

    _kept: tuple[Tensor, tuple[tuple[int, int], ...], Tensor, Tensor] | None = None

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None or torch.is_grad_enabled():
            return super().forward(x)
        keys, values = self._keys_and_values(context)
        out: Tensor = self.to_out[0](attention(self.to_q(x), keys, values, self.heads))
        return out

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        made_by = version(context), version(self.to_k.weight), version(self.to_v.weight)
        if self._kept is None or self._kept[0] is not context or self._kept[1] != made_by:
            self._kept = context, made_by, self.to_k(context), self.to_v(context)
        return self._kept[2], self._kept[3]


def version(weight: Tensor) -> tuple[int, int]:
    """What changes when a tensor is written to or replaced; inference tensors are not tracked."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def prepare(network: nn.Module) -> None:
    """Make a network on a CPU in float32 quick to draw with; others are left as they are.

    So are weights made in inference mode, whose changes torch does not count.
    """
    first = next(network.parameters())
    if first.is_inference() or first.device.type != "cpu" or first.dtype != torch.float32:
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and _plain_3x3(module):
            _become(module, PreparedConv)
        elif type(module) is Attention:
            _become(module, PreparedAttention)


def restore(network: nn.Module) -> None:
    """Undo `prepare` and give its memory back."""
    for module in network.modules():
        if isinstance(module, PreparedConv):
            module._made = None
            _become(module, nn.Conv2d)
        elif isinstance(module, PreparedAttention):
            module._kept = None
            _become(module, Attention)


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another forward, and leave it its weights and hooks."""
    module.__class__ = kind


def _plain_3x3(module: nn.Conv2d) -> bool:
    """Whether a convolution is 3×3, of stride 1, in one group, padded by a pixel of zeros."""
    shape = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and module.padding_mode == "zeros"
