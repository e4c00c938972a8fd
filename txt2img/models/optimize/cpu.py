"""CPU optimisations: layers compute from weights laid out once, and reuse what is constant.

Outputs are the same up to rounding. Parameters and state dicts stay as they are, and layers compute
plainly while gradients are enabled. Convolutions' outputs are channels last.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from txt2img.models.layers import (
    Attention,
    Conv2d,
    FeedForward,
    Linear,
    Optimized,
    attend,
    is_pointwise,
    split_heads,
)
from txt2img.models.optimize import onednn, winograd
from txt2img.models.optimize.packed import PackedWeight
from txt2img.models.optimize.quantize import is_quantized

WINOGRAD_PIXELS = 1024  # over all evaluations, before a filter's transform pays
PACKED_PIXELS = 1024  # of an output: for more, packing costs little compared with multiplying
PACKED_EVALUATIONS = 2
COLUMN_PIXELS = 64  # of an output: up to it, im2col and one matrix product are faster
TOKENS = 512  # of a feed-forward's at a time, so that its wide middle stays in the cache


@dataclass(frozen=True)
class CpuPlan:
    """How far to optimise: what memory allows, and what pays for so many evaluations."""

    evaluations: int = 1  # of the network for a picture
    winograd_side: int = winograd.SIDE  # pixels of a map's shorter side, at least
    pack: bool = True  # small maps' filters too


class Fast:
    """An optimised layer's computation, with what it caches."""

    __call__: Callable[..., Tensor]

    def __init__(self, layer: nn.Module, plan: CpuPlan) -> None:
        optimized = getattr(layer, "optimized", None)
        self.plan = plan
        self.plain: Optimized = (
            optimized.plain if isinstance(optimized, Fast) else optimized or PLAIN[type(layer)]
        )
        self.cached: tuple[object, Tensor] | None = None  # of the weight, and what it is of

    def layout(self, layer: Linear | Conv2d, key: object, make: Callable[[], Tensor]) -> Tensor:
        """The weight laid out by `make`; again for another key, or if the weight was changed."""
        key = key, layer.version
        if self.cached is None or self.cached[0] != key:
            self.cached = None  # so that there are never two
            self.cached = key, make()
        return self.cached[1]


class FastConv(Fast):
    """A float32 convolution by transforms, im2col, a packed filter or plainly, as pays best."""

    def __call__(self, layer: Conv2d, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.dtype != torch.float32:
            return self.plain(layer, x)
        if is_pointwise(layer):
            rows = x.permute(0, 2, 3, 1)
            return functional.linear(rows, layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
        name = algorithm(layer, x.shape[-2], x.shape[-1], self.plan)
        if name == "winograd":
            matrices = self.layout(layer, name, lambda: winograd.transformed(layer.weight.float()))
            return winograd.convolve(x, matrices, layer.bias)
        if name == "im2col":
            return self._im2col(layer, x)
        if name == "small":
            out = self.plain(layer, x.contiguous())  # small maps are faster with channels first
            return out.contiguous(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        return packed_convolution(self, layer, x) if name == "packed" else self.plain(layer, x)

    def _im2col(self, layer: Conv2d, x: Tensor) -> Tensor:
        """A 3×3 convolution as one matrix product."""

        def columns() -> Tensor:
            return layer.weight.float().permute(2, 3, 1, 0).reshape(-1, layer.out_channels)

        matrix = self.layout(layer, "im2col", columns)
        padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        patches = padded.unfold(1, 3, layer.stride[0]).unfold(2, 3, layer.stride[1])
        rows = patches.permute(0, 1, 2, 4, 5, 3).flatten(3)  # (B, H', W', 3·3·I)
        return functional.linear(rows, matrix.t(), layer.bias).permute(0, 3, 1, 2)


class PackedConv(Fast):
    """A bf16 convolution by a packed filter, or plainly where maps are large."""

    def __call__(self, layer: Conv2d, x: Tensor) -> Tensor:
        if not worth_packing(layer, x):
            return self.plain(layer, x)
        if is_pointwise(layer):
            return packed_product(self, layer, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        packs = is_small(layer, *x.shape[-2:])
        return packed_convolution(self, layer, x) if packs else self.plain(layer, x)


class PackedLinear(Fast):
    """A bf16 matrix product by a packed matrix."""

    def __call__(self, layer: Linear, x: Tensor) -> Tensor:
        return packed_product(self, layer, x) if worth_packing(layer, x) else self.plain(layer, x)


class FastAttention(Fast):
    """Attention that caches the keys and values of a context as long as the context lives.

    Each head's are contiguous in memory, since all of them are read again for every few queries.
    """

    def __init__(self, layer: nn.Module, plan: CpuPlan) -> None:
        super().__init__(layer, plan)
        self.contexts = WeakIdKeyDictionary()  # → versions of the weights, keys, values

    def __call__(
        self, layer: Attention, x: Tensor, context: Tensor | None, counts: Tensor | None
    ) -> Tensor:
        if torch.is_grad_enabled():
            return self.plain(layer, x, context, counts)
        q = split_heads(layer.to_q(x), layer.heads).contiguous()
        k, v = keys_values(layer, x) if context is None else self._keys_values(layer, context)
        mixed = attend(q, k, v, counts)
        out: Tensor = layer.to_out[0](layer.with_beside(mixed, q) if layer.beside else mixed)
        return out

    def _keys_values(self, layer: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
        versions = layer.to_k.version, layer.to_v.version
        entry = self.contexts.get(context)
        if entry is None or entry[0] != versions:
            entry = self.contexts[context] = versions, *keys_values(layer, context)
        return entry[1], entry[2]


def keys_values(layer: Attention, context: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, heads, M, d) of a context (B, M, C)."""
    k, v = (
        split_heads(part(context), layer.heads).contiguous() for part in (layer.to_k, layer.to_v)
    )
    return k, v


class FastFeedForward(Fast):
    """A feed-forward over some tokens at a time."""

    def __call__(self, layer: FeedForward, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.plain(layer, x)
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(flat)
        widen, narrow = layer.net[0].get_submodule("proj"), layer.net[2]
        for some, done in zip(flat.split(TOKENS), out.split(TOKENS), strict=True):
            value, gate = widen(some).chunk(2, dim=-1)
            value *= functional.gelu(gate)
            done.copy_(narrow(value))
        return out.view(x.shape)


PLAIN: dict[type[nn.Module], Optimized] = {
    Linear: nn.Linear.forward,
    Conv2d: nn.Conv2d.forward,
    Attention: Attention.plain,
    FeedForward: FeedForward.plain,
}
FAST: dict[torch.dtype, dict[type[nn.Module], type[Fast]]] = {
    torch.float32: {Conv2d: FastConv, Attention: FastAttention, FeedForward: FastFeedForward},
    torch.bfloat16: {
        Conv2d: PackedConv,
        Linear: PackedLinear,
        Attention: FastAttention,
        FeedForward: FastFeedForward,
    },
}


def optimize(network: nn.Module, plan: CpuPlan | None = None, token_merging: float = 0.0) -> None:
    """Make a network faster for one picture, in place; without arguments make it plain again.

    A plan is for networks on a CPU. Outputs stay the same up to rounding, but with `token_merging`,
    which is an approximation.
    """
    first = next(network.parameters())
    kinds = fast_kinds(first.dtype, plan) if plan and first.device.type == "cpu" else {}
    for layer in network.modules():
        if not isinstance(layer, Linear | Conv2d | Attention | FeedForward):
            continue
        if isinstance(layer.optimized, PackedWeight):
            layer.optimized.is_fast = plan is not None and first.dtype == torch.float32
            continue
        optimized, kind = layer.optimized, kinds.get(type(layer))
        if plan is not None and isinstance(optimized, Fast) and type(optimized) is kind:
            optimized.plan = plan  # it keeps what it caches
        elif plan is not None and kind is not None:
            layer.optimized = kind(layer, plan)
        elif isinstance(optimized, Fast):
            layer.optimized = None if optimized.plain is PLAIN[type(layer)] else optimized.plain
    merge_tokens = getattr(network, "merge_tokens", None)
    if merge_tokens is not None:
        merge_tokens(token_merging)


def fast_kinds(dtype: torch.dtype, plan: CpuPlan | None) -> dict[type[nn.Module], type[Fast]]:
    """How layers compute in a dtype; in bf16 only packing pays."""
    packs = (plan is None or plan.pack) and onednn.available(dtype)
    return {} if dtype == torch.bfloat16 and not packs else FAST.get(dtype, {})


def algorithm(layer: nn.Conv2d, height: int, width: int, plan: CpuPlan) -> str:
    """How to convolve a map in float32: "winograd", "im2col", "packed", "plain", "small".

    Depends on sizes and the plan only, so that a picture's bits depend on nothing else.
    """
    narrow = winograd.is_narrow(layer)
    worth = plan.evaluations * height * width >= WINOGRAD_PIXELS
    if (
        worth
        and min(height, width) >= plan.winograd_side
        and not narrow
        and winograd.is_3x3(layer, (1, 1))
    ):
        return "winograd"
    if not is_small(layer, height, width):
        return "plain"
    if not plan.pack or plan.evaluations < PACKED_EVALUATIONS:
        return "small"
    few = height * width <= COLUMN_PIXELS * layer.stride[0] * layer.stride[1]
    if few and not narrow and winograd.is_3x3(layer, layer.stride):
        return "im2col"
    return "packed" if onednn.available(torch.float32) else "small"


def is_small(layer: nn.Conv2d, height: int, width: int) -> bool:
    """Whether a map is so small that packing its filter takes long compared with multiplying."""
    return height * width <= PACKED_PIXELS * layer.stride[0] * layer.stride[1]


def worth_packing(layer: Linear | Conv2d, x: Tensor) -> bool:
    """Whether to pack a weight for this input: in bf16, unless quantised or to be trained."""
    half = x.dtype == layer.weight.dtype == torch.bfloat16
    return half and not is_quantized(layer.weight) and not torch.is_grad_enabled()


def packed_convolution(fast: Fast, layer: Conv2d, x: Tensor) -> Tensor:
    """Convolve x by a layer's packed filter."""
    key = tuple(x.shape), x.dtype
    return onednn.convolve(layer, x, fast.layout(layer, key, lambda: onednn.pack_filter(layer, x)))


def packed_product(fast: Fast, layer: Linear | Conv2d, x: Tensor) -> Tensor:
    """x (…, I) times a layer's packed matrix, plus its bias: (…, O)."""

    def pack() -> Tensor:
        return onednn.pack_matrix(layer.weight.detach().flatten(1))

    return onednn.multiply(x, fast.layout(layer, "matrix", pack), layer.bias)


def bytes_needed(network: nn.Module, height: int, width: int, plan: CpuPlan) -> int:
    """Bytes that a plan caches for a network whose first map has this height and width."""
    dtype = next(network.parameters()).dtype
    convs = [(conv, height >> n, width >> n) for conv, n in _convolutions(network)]
    if not fast_kinds(dtype, plan):
        return 0
    if dtype == torch.float32:
        return sum(_float32_bytes(*conv, plan) for conv in convs)
    layers: list[nn.Module] = [c for c, *size in convs if is_pointwise(c) or is_small(c, *size)]
    linears = (part for part in network.modules() if isinstance(part, nn.Linear))
    layers += [part for part in linears if not is_quantized(part.weight)]
    layers = [layer for layer in layers if not getattr(layer, "packed_shape", None)]
    return dtype.itemsize * sum(layer.get_parameter("weight").numel() for layer in layers)


def _float32_bytes(conv: nn.Conv2d, height: int, width: int, plan: CpuPlan) -> int:
    if is_pointwise(conv) or getattr(conv, "packed_shape", None):
        return 0
    sizes = {"winograd": winograd.PATCH**2 / 9, "packed": 1.0, "im2col": 1.0}
    return int(4 * conv.weight.numel() * sizes.get(algorithm(conv, height, width, plan), 0.0))


def _convolutions(network: nn.Module) -> Iterator[tuple[nn.Conv2d, int]]:
    """Convolutions of a U-Net or a VAE's decoder, and how often their maps are halved."""
    named = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    convs = [(name, conv) for name, conv in named if not name.startswith("encoder.")]
    matches = [re.search(r"(down|up)_blocks\.(\d+)|mid_block", name) for name, _ in convs]
    last = max((int(match[2]) for match in matches if match and match[2]), default=0)
    for (name, conv), match in zip(convs, matches, strict=True):
        if match is None:
            yield conv, 0
        elif match[1] == "down":
            yield conv, int(match[2])
        else:
            above = 0 if match[2] is None else int(match[2]) + ("upsamplers" in name)
            yield conv, last - above
