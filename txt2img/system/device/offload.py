"""Offloading: a model's parts wait in main memory or on the disk while they are not in use.

They come to the device for their use, as a whole or block by block, with the same bits: models
larger than a GPU's memory draw on it, and models larger than main memory on a CPU, only slower.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from txt2img.errors import BadRequest, OutOfMemory
from txt2img.system import resources
from txt2img.system.stream_plan import plan_stream
from txt2img.system.text import format_size

if TYPE_CHECKING:
    from txt2img.system.stream_plan import StreamPlan

ROUND = 10**8  # bytes, to which sizes are rounded up
Change = Callable[[nn.Module], Mapping[str, Tensor]]  # a layer → its weights with adapters
Plans = dict[nn.Module, "StreamPlan"]


class Reader(Protocol):
    """A network's weights in files, by their names."""

    def read(self, names: Collection[str]) -> Mapping[str, Tensor]:
        """Read weights to where the network waits."""

    def fill(self, views: Mapping[str, Tensor]) -> None:
        """Read weights into tensors of their dtypes and shapes in main memory."""

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        """Read some rows of a weight."""


@dataclass
class Placement:
    """The placement of a model's parts; by default all stay on its device."""

    device: torch.device | None = None
    mode: str = "none"
    notes: tuple[str, ...] = ()  # for the user
    limit: int | None = None  # bytes of the device's memory, at most (--max-memory)
    bounded: bool = False  # parts that do not fit in what is free come block by block
    from_files: bool = False  # weights wait in their files, not in main memory
    lazy_readers: dict[nn.Module, Reader] = field(default_factory=dict)  # for each use
    changes: dict[nn.Module, Change] = field(default_factory=dict)  # of layers that are read so

    @contextmanager
    def using(
        self, part: str, network: nn.Module, needed: Callable[[], int] = int
    ) -> Iterator[None]:
        """Keep a part, "network", "vae" or "text", on the device while it is in use.

        Its computation takes `needed()` bytes besides. Raises as `Reader` does, and BadRequest or
        OutOfMemory if not even two blocks fit in.
        """
        with ExitStack() as stack:
            plans = {} if self.mode == "none" else self._plans(part, network, needed())
            for one, plan in plans.items():
                stack.enter_context(self._streamed(one, plan))
            stack.enter_context(self.materialised(network, but=tuple(plans)))
            if self.device is not None and self.mode != "none" and not plans:
                stack.enter_context(moved(network, self.device))
            yield

    @contextmanager
    def materialised(self, network: nn.Module, but: Collection[nn.Module] = ()) -> Iterator[None]:
        """Keep a part's weights in memory, reading those on the disk. Raises as `Reader` does."""
        taken: list[tuple[nn.Module, dict[str, Tensor]]] = []
        try:
            for module in network.modules() if self.lazy_readers else ():
                if module in self.lazy_readers and module not in but:
                    taken.append((module, materialise(module, self.lazy_readers[module])))
                    self.apply_changes(module)
            yield
        finally:
            for module, weights in taken:
                dematerialise(module, weights)

    @torch.no_grad()
    def apply_changes(self, module: nn.Module) -> None:
        """Apply adapters to a module whose weights were just read."""
        for layer in module.modules() if self.changes else ():
            if (change := self.changes.get(layer)) is not None:
                for name, value in change(layer).items():
                    layer.get_parameter(name).copy_(value)

    def room(self, needed: int = 0) -> int | None:
        """The bytes for weights beside what is in memory and `needed`; None if unbounded."""
        if self.device is None or not self.bounded:
            return None
        margin = resources.MARGIN if self.device.type == "cpu" else 0
        if margin:
            resources.trim_heap()
        free = free_for(self.device, self.limit)
        return None if free is None else free - needed - margin

    def room_beside(self, network: nn.Module) -> int | None:
        """The bytes beside a network's weights, or the blocks of them that must be there.

        None where memory is not short: all of the model stays in it, and has no limit.
        """
        room = None if self.mode == "none" and self.limit is None else self.room()
        if room is None or self.mode == "none":
            return room
        from txt2img.system.device.streaming import sizes_of

        sizes = sizes_of(network)
        is_whole = not blocks_of(network) or next(network.parameters()).dtype != torch.float32
        whole = sum(weight.size for weight in sizes.values())
        return room - (whole if is_whole else plan_stream(sizes, blocks_of(network)).least)

    def _plans(self, part: str, network: nn.Module, needed: int) -> "Plans":
        """The plans of a part's networks, if they come block by block."""
        from txt2img.system.device.streaming import sizes_of

        networks = [one for one in getattr(network, "encoders", (network,)) if blocks_of(one)]
        room, always = self.room(needed), self.mode == "sequential" and part == "network"
        if part == "vae" and next(network.parameters()).dtype != torch.float32:
            return {}  # it may have to be widened while it is in use
        if not networks or not (always or room is not None):
            return {}
        sizes = {one: sizes_of(one) for one in networks}
        total = sum(weight.size for weights in sizes.values() for weight in weights.values())
        if not always and room is not None and total <= room:
            return {}
        if room is None:
            return {one: plan_stream(sizes[one], blocks_of(one)) for one in networks}
        leasts = {one: plan_stream(sizes[one], blocks_of(one), 0).least for one in networks}
        if part == "vae":  # what it computes with can be made smaller still
            room = max(room, plan_stream(sizes[network], blocks_of(network)).least)
        left = room - sum(leasts.values())
        if left < 0:
            self._refuse(part, -left)
        plans = {}
        for one in networks:
            plans[one] = plan_stream(sizes[one], blocks_of(one), leasts[one] + left)
            left -= plans[one].most - leasts[one]
        return plans

    def _streamed(self, network: nn.Module, plan: "StreamPlan") -> AbstractContextManager[None]:
        from txt2img.system.device.streaming import StoredWeights, streamed

        assert self.device is not None
        source = StoredWeights(network, self.lazy_readers.get(network))
        return streamed(network, self.device, plan, source, self.apply_changes)

    def _refuse(self, part: str, missing: int) -> None:
        """Raise for weights that no plan fits into memory."""
        user = {"text": "the text encoders", "network": "the network"}.get(part, f"the {part}")
        if self.limit is not None:
            raise BadRequest(
                f"--max-memory {format_size(self.limit)} is too little for {user}, even layer by "
                f"layer; the least that works is {format_size(_rounded(self.limit + missing))}"
            )
        raise OutOfMemory(
            f"{format_size(_rounded(missing))} of memory more is needed for {user}, even layer by "
            "layer; free some, or choose a smaller size or another model"
        )


def blocks_of(network: nn.Module) -> Sequence[str]:
    """The names of a network's lists whose items are its blocks, which its config knows."""
    lists: Sequence[str] = getattr(getattr(network, "config", None), "block_lists", ())
    return lists


def free_memory(device: torch.device) -> int | None:
    """The free bytes of a GPU, including torch's cache; None if unknown."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def free_for(device: torch.device, limit: int | None) -> int | None:
    """The free bytes of a device's memory, on a CPU of main memory, within a limit.

    None if unknown.
    """
    free = resources.available() if device.type == "cpu" else free_memory(device)
    if limit is None or (free is None and device.type != "cuda"):
        return free
    return min(free or 0, limit - in_use(device))


def in_use(device: torch.device) -> int:
    """Bytes of memory in use on a CUDA card, or by this process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resources.resident()


@contextmanager
def moved(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Use copies of a network's weights on a device. A weight replaced meanwhile stays replaced."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode(False), torch.no_grad():
        for table, name, value in tensors(network):
            if id(value) not in copies:
                copies[id(value)] = value, at(value, device)
            table[name] = copies[id(value)][1]
    originals = {id(copy): value for value, copy in copies.values()}
    try:
        yield
    finally:
        for table, name, value in tensors(network):
            table[name] = originals.get(id(value), value)


def at(value: Tensor, device: torch.device) -> Tensor:
    """Copy a weight or buffer to a device, a Parameter as a Parameter."""
    there = value.detach().to(device)
    return nn.Parameter(there, requires_grad=False) if isinstance(value, nn.Parameter) else there


def tensors(network: nn.Module) -> Iterator[tuple[MutableMapping[str, Tensor], str, Tensor]]:
    """Yield every weight and buffer, with its module's table and its name there."""
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            table = cast(dict[str, Tensor], own)
            for name, value in list(table.items()):
                if value is not None:
                    yield table, name, value


def materialise(network: nn.Module, reader: Reader) -> dict[str, Tensor]:
    """Read the weights and buffers that a network lacks. Returns them by name."""
    missing = [name for name, value in network.state_dict().items() if value.is_meta]
    if missing:
        with torch.inference_mode(False):
            network.load_state_dict(dict(reader.read(missing)), strict=False, assign=True)
            network.requires_grad_(False)
    now = network.state_dict(keep_vars=True)
    return {name: now[name] for name in missing}


def dematerialise(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Replace weights by empty ones on the meta device, unless they were replaced meanwhile."""
    held = {id(value): value for value in weights.values()}
    for table, name, value in tensors(network):
        if id(value) in held:
            empty = value.detach().to("meta")
            is_weight = isinstance(value, nn.Parameter)
            table[name] = nn.Parameter(empty, requires_grad=False) if is_weight else empty


def _rounded(size: int) -> int:
    """A size rounded up to a tenth of a gigabyte, as sizes are told."""
    return -(-size // ROUND) * ROUND
