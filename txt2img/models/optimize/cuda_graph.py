"""A network as one recording for each shape of its inputs: a card replays it without the host.

Launching a U-Net's thousand kernels one by one takes longer than a small picture's arithmetic. A
recording (a CUDA graph) reads and writes memory of its own, so inputs are copied into it and the
output out of it; weights that change in place are the changed ones in the next replay.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.deepcache import FeatureCache
from txt2img.models.optimize.onednn import address
from txt2img.system.device.memory import free, is_oom

SHAPES = 4  # recordings that are kept: each holds the memory that its intermediate results take
WARM_UPS = 2  # runs before a recording: libraries choose their kernels and make their workspaces
NO_GRAPH = "The U-Net could not be recorded as a CUDA graph and is run step by step: {}"
NOT_COMPILED = "--compile: torch.compile failed, and the U-Net is run as it is: {}"
COMPILED = "--compile: the U-Net was compiled in {:.0f} s for this size; {} keeps it for later runs"

Outputs = tuple[Tensor, ...]  # the network's own, and what it made of its deep layers if wanted
Flat = Callable[..., Outputs]  # if that is wanted; then x, time, the deep and a Cond's fields
Work = Callable[[], Outputs]
Record = Callable[[Work], tuple[Callable[[], None], Outputs]]  # work → its replay, its outputs
Signature = tuple[object, ...]


@dataclass(frozen=True)
class Recording:
    """A network's work on inputs of one shape."""

    inputs: list[Tensor | None]
    replay: Callable[[], None]
    outputs: Outputs

    def run(self, values: list[Tensor | None]) -> Outputs:
        """The outputs for other inputs of that shape."""
        for place, value in zip(self.inputs, values, strict=True):
            if place is not None and value is not None:
                place.copy_(value, non_blocking=True)
        self.replay()
        return tuple(output.clone() for output in self.outputs)


class Graphed:
    """A network that is recorded, and compiled if wished, when it meets a shape first.

    `(x, time, cond, kept) → output` and `parameters` are the network's. What fails is told, and
    from then on the network runs as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        tell: Callable[[str], None],
        record: Record | None = None,
        compiled_in: str = "",
    ) -> None:
        self.network, self.tell, self.record = network, tell, record
        self.compiled_in = compiled_in  # the folder of torch's compiler; empty: do not compile
        self.broadcasts_latents = bool(getattr(network, "broadcasts_latents", False))
        self._flat: Flat = self._plain
        self._compiled = False
        self._recordings: OrderedDict[Signature, Recording] = OrderedDict()
        self._met: set[Signature] = set()
        self._where: tuple[int, ...] = ()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The network's weights."""
        return self.network.parameters()

    def check(self) -> None:
        """Forget what was recorded with weights that lie elsewhere now."""
        where = tuple(address(weight) for weight in self.network.parameters())
        if where != self._where:
            self._where = where
            self.forget()

    def forget(self) -> None:
        """Drop all recordings, and the memory that they hold."""
        self._recordings.clear()
        free()

    def __call__(
        self, x: Tensor, time: Tensor, cond: Cond, kept: FeatureCache | None = None
    ) -> Tensor:
        """The network's output for x (B, C, H, W), time (B,), conditions and what is kept."""
        deep, wanted = (None, False) if kept is None else (kept.features, kept.features is None)
        values = [
            x,
            time,
            deep,
            cond.tokens,
            cond.pooled,
            cond.size_ids,
            cond.extra_channels,
            cond.guidance,
        ]
        out, *made = self._outputs(wanted, values)
        if kept is not None and made:
            [kept.features] = made
        return out

    def _outputs(self, wanted: bool, values: list[Tensor | None]) -> Outputs:
        """The output for all inputs, and the deep features if they are wanted."""
        key: Signature = (
            wanted,
            getattr(self.network, "merging", 0.0),
            getattr(self.network, "tile", None),
            *(None if one is None else (one.shape, one.dtype, one.device) for one in values),
        )
        if self.compiled_in and key not in self._met:
            self._compile(wanted, values)
            self._met.add(key)
        if self.record is None:
            return self._flat(wanted, *values)
        if key not in self._recordings:
            made = self._recorded(wanted, values)
            if made is None:
                return self._flat(wanted, *values)
            self._recordings[key] = made
            if len(self._recordings) > SHAPES:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        return self._recordings[key].run(values)

    def _plain(
        self, wanted: bool, x: Tensor, time: Tensor, deep: Tensor | None, *cond: Tensor | None
    ) -> Outputs:
        """The network with the fields of its conditions one by one."""
        tokens, *others = cond
        assert tokens is not None
        if deep is None and not wanted:
            return (self.network(x, time, Cond(tokens, *others)),)
        kept = FeatureCache(deep)
        out: Tensor = self.network(x, time, Cond(tokens, *others), kept)
        assert kept.features is not None
        return (out, kept.features) if wanted else (out,)

    def _compile(self, wanted: bool, values: list[Tensor | None]) -> None:
        """Compile for a shape, and say how long that took."""
        if not self._compiled:
            self._flat, self._compiled = torch.compile(self._plain, dynamic=False), True
        start = time.perf_counter()
        try:
            self._flat(wanted, *values)
            _wait(values)
        except Exception as error:  # compilers fail with errors of many kinds
            if is_oom(error):
                raise
            self.compiled_in, self._flat = "", self._plain
            self.tell(NOT_COMPILED.format(first_line(error)))
        else:
            self.tell(COMPILED.format(time.perf_counter() - start, self.compiled_in))

    def _recorded(self, wanted: bool, values: list[Tensor | None]) -> Recording | None:
        """A recording for a shape; None if there can be none, or no room for it."""
        assert self.record is not None
        inputs = [None if value is None else value.clone() for value in values]
        try:
            return Recording(inputs, *self.record(lambda: self._flat(wanted, *inputs)))
        except RuntimeError as error:
            self.forget()
            if not is_oom(error):
                self.record = None
                self.tell(NO_GRAPH.format(first_line(error)))
            return None


def recorded_on_card(work: Work) -> tuple[Callable[[], None], Outputs]:
    """Work as a CUDA graph: what replays it, and where its outputs then lie. RuntimeError."""
    here = torch.cuda.current_stream()
    aside = stream_of(here.device)
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            work()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            outputs = work()
    except RuntimeError:
        torch.cuda.set_stream(here)  # torch does not, where ending the recording fails as well
        raise
    return graph.replay, outputs


@cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """The stream of a card's recordings: libraries keep a workspace for each that they meet."""
    return torch.cuda.Stream(device)


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, which may be pages long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _wait(values: list[Tensor | None]) -> None:
    """Wait until a card has done what it was given."""
    if any(value is not None and value.is_cuda for value in values):
        torch.cuda.synchronize()
