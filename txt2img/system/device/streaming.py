"""Streaming: a network's blocks are loaded for their use, the next one prefetched, and unloaded.

They are read from main memory or from their file into two buffers that take turns; on a CUDA card
through pinned memory and a stream of their own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from txt2img.system.stream_plan import ALIGNMENT, SLOTS, StreamPlan, Weight

OnLoad = Callable[[nn.Module], None]  # told of each module whose weights have come


class Source(Protocol):
    """Weights of a network, in main memory or in files."""

    def fill(self, views: Mapping[str, Tensor]) -> None:
        """Write weights into tensors of their dtypes and shapes in main memory, by name."""

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        """Some rows of a weight."""


class StoredWeights:
    """A network's weights off the device: its own, or those that it lacks from a reader."""

    def __init__(self, network: nn.Module, reader: Source | None = None) -> None:
        self.weights, self.reader = weights_of(network), reader

    def fill(self, views: Mapping[str, Tensor]) -> None:
        """Write weights into tensors of their dtypes and shapes in main memory, by name."""
        elsewhere = {name: view for name, view in views.items() if self.weights[name].is_meta}
        if elsewhere and self.reader is not None:
            self.reader.fill(elsewhere)
        for name in views.keys() - elsewhere.keys():
            views[name].copy_(self.weights[name])

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        """Some rows of a weight."""
        if self.weights[name].is_meta and self.reader is not None:
            return self.reader.rows(name, indices)
        return self.weights[name].detach()[list(indices)]


@dataclass
class Slot:
    """Memory that a block is in: on the device, and where it passes through main memory."""

    device_buffer: Tensor
    host_buffer: Tensor  # pinned for a card; on a CPU the same tensor
    copied: torch.cuda.Event | None = None  # from here to there
    used: torch.cuda.Event | None = None  # by the block's computation


@dataclass
class BlockStream:
    """The blocks of a network in use that come and go."""

    network: nn.Module
    device: torch.device
    plan: StreamPlan
    source: Source
    on_load: OnLoad
    stored: dict[str, Tensor] = field(default_factory=dict)  # weights of blocks, off the device
    next_block: dict[str, str] = field(default_factory=dict)  # blocks, by the one before
    prefetched: dict[str, Future[Slot]] = field(default_factory=dict)
    free_slots: list[Slot] = field(default_factory=list)
    in_use: dict[str, Slot] = field(default_factory=dict)
    last: str = ""

    def __post_init__(self) -> None:
        weights = weights_of(self.network)
        self.stored = {n: weights[n] for names in self.plan.blocks.values() for n in names}
        streamed = self.plan.streamed
        self.next_block = dict(pairwise([*streamed, *streamed[:1]]))
        is_cuda = self.device.type == "cuda"
        self.side = torch.cuda.Stream(self.device) if is_cuda else None
        self.reader = ThreadPoolExecutor(1, "streaming")
        with torch.inference_mode(False):  # or the reader could not write to them
            for _ in range(min(SLOTS, len(streamed))):
                host = torch.empty(self.plan.slot, dtype=torch.uint8, pin_memory=is_cuda)
                on_cpu = self.device.type == "cpu"
                buffer = host if on_cpu else torch.empty_like(host, device=self.device)
                self.free_slots.append(Slot(buffer, host))

    def load(self, block: str) -> None:
        """Bring a block's weights, and begin to read those of the one that followed it last."""
        if block in self.plan.resident:
            self._load_resident(block)
            return
        slot = self._loaded_slot(block)
        if self.side is not None and slot.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.copied)
        self.in_use[block] = slot
        self._install(block, self._views(slot.device_buffer, block))
        if self.last:
            self.next_block[self.last] = block
        self.last = block
        ahead = self.next_block.get(block)
        if ahead is not None and ahead != block and self.free_slots and not self.prefetched:
            self._prefetch(ahead)

    def unload(self, block: str) -> None:
        """Take a block's weights off the network; what it takes them from may be overwritten."""
        if (slot := self.in_use.pop(block, None)) is None:
            return
        for name in self.plan.blocks[block]:
            put(self.network, name, self.stored[name])
        if self.side is not None:
            slot.used = torch.cuda.current_stream(self.device).record_event()
        self.free_slots.append(slot)

    def close(self) -> None:
        """Take off all blocks, and wait for what is being read or copied."""
        self.reader.shutdown(wait=True, cancel_futures=True)
        for block in list(self.in_use):
            self.unload(block)
        for block in self.plan.resident:
            for name in self.plan.blocks[block]:
                put(self.network, name, self.stored[name])
        if self.side is not None:
            self.side.synchronize()
            torch.cuda.current_stream(self.device).synchronize()
        self.prefetched.clear()
        self.free_slots.clear()

    def _loaded_slot(self, block: str) -> Slot:
        """The slot that a block has come to; another that was expected gives its own back."""
        for other in [name for name in self.prefetched if name != block]:
            self.free_slots.append(self.prefetched.pop(other).result())
        if block not in self.prefetched:
            self._prefetch(block)
        return self.prefetched.pop(block).result()

    def _prefetch(self, block: str) -> None:
        self.prefetched[block] = self.reader.submit(self._read, block, self.free_slots.pop(0))

    @torch.no_grad()
    def _read(self, block: str, slot: Slot) -> Slot:
        """Read a block into a slot; on a card, its copy there may still be under way."""
        if slot.copied is not None:
            slot.copied.synchronize()  # or the block before it would be overwritten
        self.source.fill(self._views(slot.host_buffer, block))
        if self.side is None:
            if slot.device_buffer is not slot.host_buffer:
                slot.device_buffer.copy_(slot.host_buffer)
            return slot
        with torch.cuda.stream(self.side):
            if slot.used is not None:
                self.side.wait_event(slot.used)
            slot.device_buffer.copy_(slot.host_buffer, non_blocking=True)
            slot.copied = self.side.record_event()
        return slot

    def _load_resident(self, block: str) -> None:
        """Bring a block that stays, unless it is there."""
        names = self.plan.blocks[block]
        if weight_of(self.network, names[0]) is not self.stored[names[0]]:
            return
        self._install(
            block, read_to_device(self.source, {n: self.stored[n] for n in names}, self.device)
        )

    def _views(self, memory: Tensor, block: str) -> dict[str, Tensor]:
        """A block's weights, one after the other in a piece of memory."""
        views, start = {}, 0
        for name in self.plan.blocks[block]:
            value = self.stored[name]
            flat = memory[start : start + value.nbytes]
            views[name] = flat.view(value.dtype).as_strided(value.shape, value.stride())
            start += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        return views

    def _install(self, block: str, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            put(self.network, name, value)
        self.on_load(self.network.get_submodule(block))


@contextmanager
def streamed(
    network: nn.Module, device: torch.device, plan: StreamPlan, source: Source, on_load: OnLoad
) -> Iterator[None]:
    """Use a network whose blocks come and go by a plan; the rest of it is there all the time."""
    weights = weights_of(network)
    inside = {name for names in plan.blocks.values() for name in names}
    rest = {n: value for n, value in weights.items() if n not in inside and n not in plan.tables}
    stream = BlockStream(network, device, plan, source, on_load)
    with ExitStack() as stack:
        stack.callback(stream.close)
        for name, value in weights.items():
            if name not in inside:
                stack.callback(put, network, name, value)
        for name, value in read_to_device(source, rest, device).items():
            put(network, name, value)
        for part in {n.rpartition(".")[0] for n in rest}:
            _notify_leaf(network.get_submodule(part), on_load)
        for name in plan.tables:
            stack.enter_context(_rows_only(network, name, device, source))
        for block in plan.blocks:
            module = network.get_submodule(block)
            before = module.register_forward_pre_hook(partial(_load, stream, block))
            after = module.register_forward_hook(partial(_unload, stream, block), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield


def _load(stream: BlockStream, block: str, *_: object) -> None:
    stream.load(block)


def _unload(stream: BlockStream, block: str, *_: object) -> None:
    stream.unload(block)


def _notify_leaf(module: nn.Module, on_load: OnLoad) -> None:
    """Tell of a module whose blocks are yet to come."""
    if not any(True for _ in module.children()):
        on_load(module)


@contextmanager
def _rows_only(
    network: nn.Module, name: str, device: torch.device, source: Source
) -> Iterator[None]:
    """Let an embedding have only the rows that its input asks for."""
    module = network.get_submodule(name.rpartition(".")[0])
    weight = weight_of(network, name)
    nothing = torch.empty((0, *weight.shape[1:]), dtype=weight.dtype, device=device)

    def come(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        used, places = inputs[0].unique(return_inverse=True)
        put(network, name, source.rows(name, used.tolist()).to(device, weight.dtype))
        return (places, *inputs[1:])

    def go(*_: object) -> None:
        put(network, name, nothing)

    hooks = module.register_forward_pre_hook(come), module.register_forward_hook(go)
    put(network, name, nothing)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def read_to_device(
    source: Source, like: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """Weights of the dtypes and shapes of others, read and moved to a device."""
    with torch.inference_mode(False):
        found = {}
        for name, value in like.items():
            here = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            source.fill({name: here})
            found[name] = here.to(device)
        return found


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights and buffers by name, as far as files have them."""
    found: dict[str, Tensor] = network.state_dict(keep_vars=True)
    return found


def sizes_of(network: nn.Module) -> dict[str, Weight]:
    """The bytes of each weight, and its number of dimensions."""
    return {n: Weight(value.nbytes, value.dim()) for n, value in weights_of(network).items()}


def weight_of(network: nn.Module, name: str) -> Tensor:
    """A weight or buffer by its name."""
    owner, _, attribute = name.rpartition(".")
    value: Tensor = getattr(network.get_submodule(owner), attribute)
    return value


def put(network: nn.Module, name: str, value: Tensor) -> None:
    """Give a network a weight or buffer by its name."""
    owner, _, attribute = name.rpartition(".")
    module = network.get_submodule(owner)
    if isinstance(getattr(module, attribute), nn.Parameter) and not isinstance(value, nn.Parameter):
        with torch.inference_mode(False):
            value = nn.Parameter(value, requires_grad=False)
    setattr(module, attribute, value)
