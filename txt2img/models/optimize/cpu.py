"""Networks made ready to draw on a CPU: the same modules, with weights laid out once for it.

`prepare` gives modules quicker forwards, which compute the same but for rounding, and which see by
the weights' versions that a LoRA was merged or taken off. State dicts and parameters stay what
they were. Where gradients are wanted the modules' own forwards run. Maps have their channels last.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from txt2img.models.layers import Attention, FeedForward, attend, split_heads
from txt2img.models.optimize import winograd
from txt2img.models.optimize.onednn import (
    LaidConv,
    PackedConv,
    PackedLinear,
    is_mix,
    is_packed,
    is_plain,
    is_small,
    version,
)
from txt2img.models.optimize.upcast import LeanConv2d

WINOGRAD_SIDE = 16  # pixels: below it, multiplying costs less than reading 4 times the weights
WINOGRAD_CHANNELS = 64  # below it, the transforms cost more than the products that they save
WINOGRAD_PIXELS = 1024  # seen in all by a filter before its transform has paid for itself
PACKED_LOOKS = 2
COLUMN_PIXELS = 64  # of an output: up to it, one product over all that a filter sees is quicker
TOKENS = 512  # of a feed-forward's at a time, so that its wide middle stays near the processor


@dataclass(frozen=True)
class Plan:
    """What networks may be made quick with: what memory allows, and what pays by then."""

    looks: int = 1  # how often a network is asked for a picture
    smallest: int = WINOGRAD_SIDE  # pixels of a map's shorter side for Winograd's transforms
    pack: bool = True  # keep small maps' filters in the processor's own layout too


class PreparedConv(LaidConv):
    """A convolution by transforms, by columns, by a packed filter or plainly, as pays best."""

    plan = Plan()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.float32:
            return super().forward(x)
        if is_mix(self):
            return self._mix(x)
        way = way_of(self, x.shape[-2], x.shape[-1], self.plan)
        if way == "winograd":
            return winograd.convolve(x, self._widened("winograd", winograd.transformed), self.bias)
        if way == "columns":
            return self._by_columns(x)
        if way == "packed" and torch.backends.mkldnn.is_available():
            return self.packed(x.contiguous(memory_format=torch.channels_last))
        if way == "plain":
            return super().forward(x.contiguous(memory_format=torch.channels_last))
        out = super().forward(x.contiguous())  # small and not packed: the other layout is quicker
        return out.contiguous(memory_format=torch.channels_last)

    def _mix(self, x: Tensor) -> Tensor:
        """A 1×1 convolution as a matrix product over channels."""
        last = x.permute(0, 2, 3, 1)
        return functional.linear(last, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    def _widened(self, way: str, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What `make` gives of the filter in float32."""
        return self.laid_out(way, lambda weight: make(weight.float()))

    def _by_columns(self, x: Tensor) -> Tensor:
        """As one matrix product over what a 3×3 filter sees at each place (im2col)."""
        matrix = self._widened(
            "columns", lambda weight: weight.permute(2, 3, 1, 0).reshape(-1, self.out_channels)
        )
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        seen = padded.unfold(1, 3, self.stride[0]).unfold(2, 3, self.stride[1])
        columns = seen.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (B, H', W', 3·3·I)
        return functional.linear(columns, matrix.t(), self.bias).permute(0, 3, 1, 2)


class PreparedLean(PreparedConv, LeanConv2d):
    """The same of a filter that stays in memory as it is stored."""


class PreparedAttention(Attention):
    """Attention that keeps the keys and values of contexts for as long as these are kept.

    Each head's lie together in memory: it reads all of them again for every few queries.
    """

    _kept: WeakIdKeyDictionary | None = None

    def forward(
        self, x: Tensor, context: Tensor | None = None, counts: Tensor | None = None
    ) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x, context, counts)
        q = self._together(self.to_q(x))
        keys, values = self._pair(x) if context is None else self._keys_and_values(context)
        out: Tensor = self.to_out[0](attend(q, keys, values, counts))
        return out

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Those of a context (B, M, C), made anew when it or the weights have changed."""
        made_by = version(context), version(self.to_k.weight), version(self.to_v.weight)
        if self._kept is None:
            self._kept = WeakIdKeyDictionary()
        found = self._kept.get(context)
        if found is None or found[0] != made_by:
            found = self._kept[context] = made_by, *self._pair(context)
        return found[1], found[2]

    def _pair(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, M, d) of a context (B, M, C)."""
        return self._together(self.to_k(context)), self._together(self.to_v(context))

    def _together(self, x: Tensor) -> Tensor:
        return split_heads(x, self.heads).contiguous()


class PreparedFeedForward(FeedForward):
    """A feed-forward over some tokens at a time."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(flat)
        wide, narrow = self.net[0].get_submodule("proj"), self.net[2]
        for some, done in zip(flat.split(TOKENS), out.split(TOKENS), strict=True):
            value, gate = wide(some).chunk(2, dim=-1)
            value *= functional.gelu(gate)
            done.copy_(narrow(value))
        return out.view(x.shape)


Kinds = dict[type[nn.Module], type[nn.Module]]

PREPARED: dict[torch.dtype, Kinds] = {
    torch.float32: {
        nn.Conv2d: PreparedConv,
        LeanConv2d: PreparedLean,
        Attention: PreparedAttention,
        FeedForward: PreparedFeedForward,
    },
    torch.bfloat16: {
        nn.Conv2d: PackedConv,
        nn.Linear: PackedLinear,
        Attention: PreparedAttention,
        FeedForward: PreparedFeedForward,
    },
}
OWN = {kind: plain for kinds in PREPARED.values() for plain, kind in kinds.items()}


def way_of(conv: nn.Conv2d, height: int, width: int, plan: Plan) -> str:
    """How a convolution of a map goes: "winograd", "columns", "packed", "plain", "small".

    Sizes and the plan decide alone, so that a picture's bits depend on nothing else.
    """
    narrow = min(conv.in_channels, conv.out_channels) < WINOGRAD_CHANNELS
    pays = min(height, width) >= plan.smallest and plan.looks * height * width >= WINOGRAD_PIXELS
    if pays and not narrow and _plain_3x3(conv, (1, 1)):
        return "winograd"
    if not is_small(conv, height, width):
        return "plain"
    if not plan.pack or plan.looks < PACKED_LOOKS:
        return "small"
    few = height * width <= COLUMN_PIXELS * conv.stride[0] * conv.stride[1]
    return "columns" if few and not narrow and _plain_3x3(conv, conv.stride) else "packed"


def prepare(network: nn.Module, plan: Plan | None) -> None:
    """Make a network on a CPU in float32 or bf16 quick to draw with by a plan; others, or without
    a plan, are left or made as they were.

    So are weights made in inference mode, whose changes torch does not count.
    """
    first = next(network.parameters())
    kinds = kinds_for(first.dtype, plan)
    if plan is None or not kinds or first.is_inference() or first.device.type != "cpu":
        return restore(network)
    if any(type(module) in OWN.keys() - kinds.values() for module in network.modules()):
        restore(network)  # it computed in another precision
    for module in network.modules():
        kind = kinds.get(type(module))
        if kind is not None:
            module.__class__ = kind
        if isinstance(module, PreparedConv):
            module.plan = plan


def kinds_for(dtype: torch.dtype, plan: Plan | None) -> Kinds:
    """What modules become to compute in `dtype`; in bf16 nothing else pays than packing."""
    packs = torch.backends.mkldnn.is_available() and (plan is None or plan.pack)
    if dtype == torch.bfloat16 and not packs:
        return {}
    return PREPARED.get(dtype, {})


def restore(network: nn.Module) -> None:
    """Undo `prepare` and give its memory back."""
    for module in network.modules():
        if type(module) in OWN:
            for name in ("plan", "_made", "_kept"):
                module.__dict__.pop(name, None)
            module.__class__ = OWN[type(module)]


def need(network: nn.Module, height: int, width: int, plan: Plan) -> int:
    """Bytes that a plan keeps for a network whose first map has this height and width."""
    convs = [(conv, height >> n, width >> n) for conv, n in _convolutions(network)]
    dtype = next(network.parameters()).dtype
    kinds = kinds_for(dtype, plan)
    if not kinds:
        return 0
    if PackedConv not in kinds.values():
        return sum(_kept_bytes(*where, plan) for where in convs)
    packed: list[nn.Module] = [conv for conv, high, wide in convs if is_packed(conv, high, wide)]
    linears = (part for part in network.modules() if isinstance(part, nn.Linear))
    packed += [part for part in linears if is_plain(part.weight)]
    return dtype.itemsize * sum(layer.get_parameter("weight").numel() for layer in packed)


def _kept_bytes(conv: nn.Conv2d, height: int, width: int, plan: Plan) -> int:
    squares = {"winograd": winograd.PATCH**2 / 9, "packed": 1.0, "columns": 1.0}
    if conv.kernel_size == (1, 1):
        return 0
    return int(4 * conv.weight.numel() * squares.get(way_of(conv, height, width, plan), 0.0))


def _convolutions(network: nn.Module) -> Iterator[tuple[nn.Conv2d, int]]:
    """The convolutions of a U-Net or a VAE's decoder, and how often their maps are halved."""
    named = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    convs = [(name, conv) for name, conv in named if not name.startswith("encoder.")]
    found = [re.search(r"(down|up)_blocks\.(\d+)|mid_block", name) for name, _ in convs]
    last = max((int(match[2]) for match in found if match and match[2]), default=0)
    for (name, conv), match in zip(convs, found, strict=True):
        if match is None:
            yield conv, 0
        elif match[1] == "down":
            yield conv, int(match[2])
        else:
            above = 0 if match[2] is None else int(match[2]) + ("upsamplers" in name)
            yield conv, last - above


def _plain_3x3(module: nn.Conv2d, stride: tuple[int, ...]) -> bool:
    """Whether a convolution is 3×3, of this stride, in one group, padded by a pixel of zeros."""
    shape = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
    return shape == ((3, 3), stride, (1, 1), (1, 1), 1) and module.padding_mode == "zeros"
