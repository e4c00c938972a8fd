"""Offloading: a model's parts wait in main memory or on the disk while they are not in use.

They move to the device for their use, or layer by layer, with the same bits: models larger than a
GPU's memory draw on it, only slower.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from txt2img.errors import BadRequest
from txt2img.system.text import format_size, shown

MODES = ("none", "model", "sequential", "auto")
ROOM = 2 * 2**30  # bytes of GPU memory for all but weights
MODE_TEXT = {
    "model": "each part of the model comes to {} for its use",
    "sequential": "the network comes to {} layer by layer",
}
NO_CARD = "--offload is for graphics cards: on a CPU the model stays in main memory"

Read = Callable[[Collection[str]], Mapping[str, Tensor]]  # a network's tensors by their names


@dataclass
class Placement:
    """The placement of a model's parts; by default all stay on its device."""

    device: torch.device | None = None
    mode: str = "none"
    notes: tuple[str, ...] = ()  # for the user
    lazy_readers: dict[nn.Module, Read] = field(
        default_factory=dict
    )  # what reads weights for each use

    @contextmanager
    def using(self, part: str, network: nn.Module) -> Iterator[None]:
        """Keep a part, "network", "vae" or "text", on the device while it is in use."""
        with self.materialised(network):
            if self.device is None or self.mode == "none":
                yield
            elif self.mode == "sequential" and part == "network":
                with by_layers(network, self.device):
                    yield
            else:
                with moved(network, self.device):
                    yield

    @contextmanager
    def materialised(self, network: nn.Module) -> Iterator[None]:
        """Keep a part's weights in memory, reading those on the disk. Raises as `Read` does."""
        taken: list[tuple[nn.Module, dict[str, nn.Parameter]]] = []
        try:
            for module in network.modules() if self.lazy_readers else ():
                if module in self.lazy_readers:
                    taken.append((module, materialise(module, self.lazy_readers[module])))
            yield
        finally:
            for module, weights in taken:
                dematerialise(module, weights)


def choose_mode(
    mode: str, device: torch.device, sizes: Mapping[str, int], free: int | None
) -> tuple[str, str]:
    """The mode for parts of these sizes in bytes, and a line about it, empty if it is "none".

    BadRequest.
    """
    if mode not in MODES:
        raise BadRequest(f"--offload {shown(mode)}; choose from {', '.join(MODES)}")
    if device.type == "cpu":
        return "none", NO_CARD if mode in MODE_TEXT else ""
    is_auto = mode == "auto"
    if is_auto:
        mode = fitting(sizes, free)
    if mode == "none":
        return mode, ""
    line = f"Offload: {MODE_TEXT[mode].format(device.type)}"
    if is_auto and free is not None:
        weights = sum(sizes.values())
        line += f" ({format_size(weights)} of weights, {format_size(free)} free)"
    return mode, line


def fitting(sizes: Mapping[str, int], free: int | None) -> str:
    """The fastest mode that leaves ROOM on a GPU."""
    if free is None or sum(sizes.values()) + ROOM <= free:
        return "none"
    return "model" if max(sizes.values()) + ROOM <= free else "sequential"


def free_memory(device: torch.device) -> int | None:
    """The free bytes of a GPU, including torch's cache; None if unknown."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@contextmanager
def moved(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Use copies of a network's weights on a device. A weight replaced meanwhile stays replaced."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode(False), torch.no_grad():
        for table, name, value in tensors(network):
            if id(value) not in copies:
                copies[id(value)] = value, at(value, device)
            table[name] = copies[id(value)][1]
    own = {id(copy): value for value, copy in copies.values()}
    try:
        yield
    finally:
        for table, name, value in tensors(network):
            table[name] = own.get(id(value), value)


@contextmanager
def by_layers(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Move each layer's weights to a device while it computes, by accelerate."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    with torch.inference_mode(False):
        cpu_offload(network, device)
    try:
        yield
    finally:
        with torch.inference_mode(False):
            remove_hook_from_submodules(network)


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


def materialise(network: nn.Module, read: Read) -> dict[str, nn.Parameter]:
    """Read the weights that a network lacks, and its buffers, which stay. Returns them by name."""
    missing = [name for name, value in network.state_dict().items() if value.is_meta]
    if missing:
        with torch.inference_mode(False):
            network.load_state_dict(dict(read(missing)), strict=False, assign=True)
            network.requires_grad_(False)
    parameters = dict(network.named_parameters())
    return {name: parameters[name] for name in missing if name in parameters}


def dematerialise(network: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Replace weights by empty ones on the meta device, unless they were replaced meanwhile."""
    for name, weight in weights.items():
        owner, _, attribute = name.rpartition(".")
        table = network.get_submodule(owner)._parameters
        if table[attribute] is weight:
            table[attribute] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
