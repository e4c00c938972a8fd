"""CUDA graphs of a network, one for each shape of its inputs, and torch.compile.

Launching a network's thousand kernels one by one takes longer than a small picture's arithmetic. A
graph reads and writes fixed memory: inputs are copied into it and outputs out of it, and weights
that change in place are seen by the next replay.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, zip_longest

import torch
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond, ImagePrompt
from txt2img.diffusion.deepcache import FeatureCache
from txt2img.models.optimize.quantize import is_quantized
from txt2img.system.device.memory import free, is_oom

MAX_RECORDINGS = 4  # each holds the memory of its intermediate results
WARM_UP_RUNS = 2  # before recording: libraries choose kernels and allocate workspaces
NOT_RECORDED = "The network could not be recorded as a CUDA graph and is run step by step: {}"
NOT_COMPILED = "--compile: torch.compile failed, and the network is run as it is: {}"
COMPILED = (
    "--compile: the network was compiled in {:.0f} s for this size; {} keeps it for later runs"
)

Outputs = tuple[Tensor, ...]  # the network's, and DeepCache features if it is to compute them
# Whether to compute DeepCache features; the numbers of a Cond's residuals, features, keys and
# values, and their masks.
Kind = tuple[bool, int, int, int, int]
# (kind, x, time, features, a Cond's fields) → outputs
FlatNetwork = Callable[..., Outputs]
Work = Callable[[], Outputs]
Record = Callable[[Work], tuple[Callable[[], None], Outputs]]  # work → its replay, its outputs
Signature = tuple[object, ...]


@dataclass(frozen=True)
class Recording:
    """A recorded network for inputs of one shape."""

    inputs: list[Tensor | None]
    replay: Callable[[], None]
    outputs: Outputs

    def run(self, values: list[Tensor | None]) -> Outputs:
        """Outputs for other inputs of that shape."""
        for target, value in zip(self.inputs, values, strict=True):
            if target is not None and value is not None:
                target.copy_(value, non_blocking=True)
        self.replay()
        return tuple(output.clone() for output in self.outputs)


class CudaGraphed:
    """A network that is recorded, and compiled if asked, at the first inputs of each shape.

    Calls and `parameters` are the network's. Failures are warned of, and from then on the network
    runs as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        warn: Callable[[str], None],
        record: Record | None = None,
        compile_cache: str = "",
    ) -> None:
        self.network, self.warn, self.record = network, warn, record
        self.compile_cache = compile_cache  # folder of torch's compiler; empty: do not compile
        self.broadcasts_latents = bool(getattr(network, "broadcasts_latents", False))
        self._flat: FlatNetwork = self._plain
        self._compiled = False
        self._recordings: OrderedDict[Signature, Recording] = OrderedDict()
        self._compiled_shapes: set[Signature] = set()
        self._addresses: tuple[int, ...] = ()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's weights."""
        return self.network.parameters()

    def drop_stale(self) -> None:
        """Drop recordings if weights have moved in memory."""
        addresses = tuple(_address(weight) for weight in self.network.parameters())
        if addresses != self._addresses:
            self._addresses = addresses
            self.forget()

    def forget(self) -> None:
        """Drop all recordings and free their memory."""
        self._recordings.clear()
        free()

    def __call__(
        self, x: Tensor, time: Tensor, cond: Cond, cache: FeatureCache | None = None
    ) -> Tensor:
        """The network's output for x (B, C, H, W), time (B,) and a condition."""
        features = None if cache is None else cache.features
        fills_cache = cache is not None and features is None
        parts = (cond.tokens, cond.pooled, cond.size_ids, cond.extra_channels, cond.guidance)
        kind, tensors = _flattened(cond)
        values = [x, time, features, *parts, *tensors]
        out, *computed = self._outputs((fills_cache, *kind), values)
        if cache is not None and computed:
            [cache.features] = computed
        return out

    def _outputs(self, kind: Kind, values: list[Tensor | None]) -> Outputs:
        """Replay the recording for inputs of this shape, or make it."""
        key: Signature = (
            kind,
            getattr(self.network, "merging", 0.0),
            getattr(self.network, "tile", None),
            getattr(self.network, "freeu", None),
            *(
                None if value is None else (value.shape, value.dtype, value.device)
                for value in values
            ),
        )
        if self.compile_cache and key not in self._compiled_shapes:
            self._compile(kind, values)
            self._compiled_shapes.add(key)
        if self.record is None:
            return self._flat(kind, *values)
        if key not in self._recordings:
            recording = self._recorded(kind, values)
            if recording is None:
                return self._flat(kind, *values)
            self._recordings[key] = recording
            if len(self._recordings) > MAX_RECORDINGS:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        return self._recordings[key].run(values)

    def _plain(
        self,
        kind: Kind,
        x: Tensor,
        time: Tensor,
        features: Tensor | None,
        tokens: Tensor,
        pooled: Tensor | None,
        size_ids: Tensor | None,
        extra_channels: Tensor | None,
        guidance: Tensor | None,
        *more: Tensor,
    ) -> Outputs:
        """The network as a function of tensors only."""
        fills_cache, *counts = kind
        parts = tokens, pooled, size_ids, extra_channels, guidance
        cond = _with_flattened(Cond(*parts), counts, more)
        if features is None and not fills_cache:
            return (self.network(x, time, cond),)
        cache = FeatureCache(features)
        out: Tensor = self.network(x, time, cond, cache)
        assert cache.features is not None
        return (out, cache.features) if fills_cache else (out,)

    def _compile(self, kind: Kind, values: list[Tensor | None]) -> None:
        """Compile for a shape; tell how long that took."""
        if not self._compiled:
            self._flat, self._compiled = torch.compile(self._plain, dynamic=False), True
        start = time.perf_counter()
        try:
            self._flat(kind, *values)
            _wait(values)
        except Exception as error:  # compilers fail with errors of many kinds
            if is_oom(error):
                raise
            self.compile_cache, self._flat = "", self._plain
            self.warn(NOT_COMPILED.format(first_line(error)))
        else:
            self.warn(COMPILED.format(time.perf_counter() - start, self.compile_cache))

    def _recorded(self, kind: Kind, values: list[Tensor | None]) -> Recording | None:
        """Record for a shape; None if that fails, or memory is short."""
        assert self.record is not None
        inputs = [None if value is None else value.clone() for value in values]
        try:
            return Recording(inputs, *self.record(lambda: self._flat(kind, *inputs)))
        except RuntimeError as error:
            self.forget()
            if not is_oom(error):
                self.record = None
                self.warn(NOT_RECORDED.format(first_line(error)))
            return None


def _flattened(cond: Cond) -> tuple[tuple[int, int, int, int], list[Tensor]]:
    """The tensors of a Cond's tuples one after another, references last; how many of each.

    Where one image prompt has a mask, all get one.
    """
    pairs = [prompt.pairs for prompt in cond.image_prompts]
    masks = [prompt.mask for prompt in cond.image_prompts]
    if (known := next((mask for mask in masks if mask is not None), None)) is not None:
        masks = [torch.ones_like(known) if mask is None else mask for mask in masks]
    there = [mask for mask in masks if mask is not None]
    counts = len(cond.residuals), len(cond.features), len(pairs), len(there)
    return counts, [*cond.residuals, *cond.features, *pairs, *there, *cond.references]


def _with_flattened(cond: Cond, counts: Sequence[int], tensors: Sequence[Tensor]) -> Cond:
    """A Cond with the tensors of `_flattened` in its tuples."""
    rest = iter(tensors)
    residuals, features, pairs, masks = (tuple(islice(rest, count)) for count in counts)
    prompts = tuple(ImagePrompt(*both) for both in zip_longest(pairs, masks))
    return replace(
        cond,
        residuals=residuals,
        features=features,
        image_prompts=prompts,
        references=tuple(rest),
    )


def record_on_card(work: Work) -> tuple[Callable[[], None], Outputs]:
    """Record work as a CUDA graph: its replay, and the outputs that it overwrites. RuntimeError."""
    current = torch.cuda.current_stream()
    side = recording_stream(current.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_RUNS):
            work()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            outputs = work()
    except RuntimeError:
        torch.cuda.set_stream(current)  # torch does not, if ending the recording fails, too
        raise
    return graph.replay, outputs


@cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """A card's stream for recordings; one for all, since libraries keep a workspace a stream."""
    return torch.cuda.Stream(device)


def first_line(error: BaseException) -> str:
    """First line of an error's text, which may be pages long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _address(weight: Tensor) -> int:
    """Address of a weight; of a quantised one, made of several tensors, the object's id."""
    return id(weight) if is_quantized(weight) else weight.data_ptr()


def _wait(values: list[Tensor | None]) -> None:
    """Wait for a card's pending work."""
    if any(value is not None and value.is_cuda for value in values):
        torch.cuda.synchronize()
