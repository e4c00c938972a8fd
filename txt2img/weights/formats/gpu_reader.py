"""Weights from a file straight to a card: through two buffers in turn, no whole copy between.

While a card fetches one buffer the next part of the file is read into the other, and types are
changed and values checked on the card. The buffers are pinned: a card fetches from such memory
without the processor's help.
"""

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from txt2img.errors import MissingWeights
from txt2img.system.files import open_regular
from txt2img.system.text import shown
from txt2img.weights.formats import tensors
from txt2img.weights.formats.dtypes import torch_dtype
from txt2img.weights.formats.safetensors_file import NAME_MAX, Stored
from txt2img.weights.formats.tensors import fill, in_order, kind, shaped

BUFFER = 2**26  # bytes


class Stage:
    """Two buffers through which bytes of files go to a device."""

    def __init__(self, device: torch.device, size: int = BUFFER) -> None:
        self.device = device
        card = device.type == "cuda"
        self.buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=card) for _ in range(2)]
        self.fetched = [torch.cuda.Event() if card else None for _ in range(2)]
        self.turn = 0

    def bring(self, name: str, stored: Stored) -> Tensor:
        """A tensor as it is stored, on the device. Raises BadFile if the file shrank."""
        made = torch.empty(stored.size, dtype=torch.uint8, device=self.device)
        with open_regular(stored.path) as file:
            file.seek(stored.start)
            done = 0
            while done < stored.size:
                buffer, event = self.buffers[self.turn], self.fetched[self.turn]
                part = buffer[: min(len(buffer), stored.size - done)]
                if event is not None:
                    event.synchronize()
                fill(part.numpy(), file, name, stored)
                made[done : done + len(part)].copy_(part, non_blocking=True)
                if event is not None:
                    event.record()
                done += len(part)
                self.turn = 1 - self.turn
        return shaped(made.view(torch_dtype(stored.dtype)), stored)


def read(
    stored: Mapping[str, Stored],
    device: torch.device,
    dtype: torch.dtype,
    kept: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """What reading.read gives, and raises; values are looked at when all are there."""
    stage = Stage(device)
    found: dict[str, Tensor] = {}
    bounds: list[Tensor] = []
    for name, at in in_order(stored):
        value = stage.bring(name, at)
        if not value.is_floating_point():
            where = f"{at.path.name}: {shown(name, NAME_MAX)}"
            raise MissingWeights(f"{where} holds {at.dtype}; weights are floats")
        if at.scale is not None:
            scale = stage.bring(f"{name} scale", at.scale)
            value = value.float() * scale.float().reshape(())
        found[name] = value.to(kind(at, dtype, name in kept))
        bounds.append(_finite(found[name]))
    if bounds and not bool(torch.stack(bounds).all()):
        return tensors.read(stored, device, dtype, kept)  # says which, and why
    return found


def _finite(value: Tensor) -> Tensor:
    """Whether no value is NaN or infinite, as a tensor: the card is not waited for."""
    if not value.numel():
        return torch.ones((), dtype=torch.bool, device=value.device)
    bounds = torch.aminmax(value.float() if value.dtype.itemsize == 1 else value)
    return torch.isfinite(bounds.min) & torch.isfinite(bounds.max)
