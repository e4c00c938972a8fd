"""Where a model's parts are while they are not in use: on the device, in main memory, on the disk.

A part that waits elsewhere comes for as long as it is in use, or layer by layer, with the same
bits; so models larger than a card draw on it, only later.
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
ROOM = 2 * 2**30  # bytes on a card for all that is not weights
MODE_TEXT = {
    "model": "each part of the model comes to {} for its use",
    "sequential": "the U-Net comes to {} layer by layer",
}
NO_CARD = "--offload is for graphics cards: on a CPU the model stays in main memory"

Read = Callable[[Collection[str]], Mapping[str, Tensor]]  # a network's tensors by their names


@dataclass
class Placement:
    """How the parts of a model get to its device; without one all of them are there."""

    device: torch.device | None = None
    mode: str = "none"
    notes: tuple[str, ...] = ()  # what the user should know of that
    lazy_readers: dict[nn.Module, Read] = field(
        default_factory=dict
    )  # what reads weights for each use

    @contextmanager
    def using(self, part: str, network: nn.Module) -> Iterator[None]:
        """A part, "unet", "vae" or "text", on the device for as long as it is in use."""
        with self.materialised(network):
            if self.device is None or self.mode == "none":
                yield
            elif self.mode == "sequential" and part == "unet":
                with by_layers(network, self.device):
                    yield
            else:
                with moved(network, self.device):
                    yield

    @contextmanager
    def materialised(self, network: nn.Module) -> Iterator[None]:
        """A part whose weights are in memory, to be changed: those that lie on the disk are read.

        Afterwards they lie there again. Raises as `read` does.
        """
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
    """The mode to use for parts of so many bytes on a device of which so many are free.

    And a line for the user, empty if all is as ever. BadRequest.
    """
    if mode not in MODES:
        raise BadRequest(f"--offload {shown(mode)}; choose from {', '.join(MODES)}")
    if device.type == "cpu":
        return "none", NO_CARD if mode in MODE_TEXT else ""
    asked = mode
    if mode == "auto":
        mode = fitting(sizes, free)
    if mode == "none":
        return mode, ""
    line = f"Offload: {MODE_TEXT[mode].format(device.type)}"
    if asked == "auto" and free is not None:
        weights = sum(sizes.values())
        line += f" ({format_size(weights)} of weights, {format_size(free)} free)"
    return mode, line


def fitting(sizes: Mapping[str, int], free: int | None) -> str:
    """The quickest mode that leaves a card room for what is computed."""
    if free is None or sum(sizes.values()) + ROOM <= free:
        return "none"
    return "model" if max(sizes.values()) + ROOM <= free else "sequential"


def free_memory(device: torch.device) -> int | None:
    """The bytes that are free on a card, those too that torch holds unused; None if unknown."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


@contextmanager
def moved(network: nn.Module, device: torch.device) -> Iterator[None]:
    """A network's weights on a device; those they are copies of wait where they are.

    A weight that is replaced meanwhile stays replaced.
    """
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
    """Each layer's weights on a device while it computes, as accelerate does it."""
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
    """A weight or buffer on a device, as what it is."""
    there = value.detach().to(device)
    return nn.Parameter(there, requires_grad=False) if isinstance(value, nn.Parameter) else there


def tensors(network: nn.Module) -> Iterator[tuple[MutableMapping[str, Tensor], str, Tensor]]:
    """Every weight and buffer with the table and the name that it has there."""
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            table = cast(dict[str, Tensor], own)
            for name, value in list(table.items()):
                if value is not None:
                    yield table, name, value


def materialise(network: nn.Module, read: Read) -> dict[str, nn.Parameter]:
    """Give a network those weights that it lacks; gives these by their names."""
    lacking = [name for name, value in network.named_parameters() if value.is_meta]
    if lacking:
        with torch.inference_mode(False):
            network.load_state_dict(dict(read(lacking)), strict=False, assign=True)
            network.requires_grad_(False)
    return {name: network.get_parameter(name) for name in lacking}


def dematerialise(network: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Take weights from a network again, but those that were replaced meanwhile.

    What remains of them are their shapes and types.
    """
    for name, weight in weights.items():
        owner, _, attribute = name.rpartition(".")
        table = network.get_submodule(owner)._parameters
        if table[attribute] is weight:
            table[attribute] = nn.Parameter(weight.detach().to("meta"), requires_grad=False)
