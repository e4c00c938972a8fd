"""Times a run's steps and images, and its memory, for later estimates."""

import sys
import time
from dataclasses import dataclass, field
from math import prod
from statistics import fmean
from typing import Self

import torch
from torch import nn

from txt2img.images.resume import Item
from txt2img.models.layers import Conv2d, Linear
from txt2img.pipeline.batch import Event, Finished, Started, Step
from txt2img.pipeline.estimates import history
from txt2img.pipeline.estimates.history import Speed
from txt2img.system.device.offload import in_use
from txt2img.weights.model import Model, device_of, precision


@dataclass
class Timer:
    """Times a run's events, and records its speed and memory when the run ends."""

    model: Model
    load: float  # seconds that it took to load
    # Of each group, by its token merging: seconds per evaluation and other, a megapixel.
    groups: dict[float, list[tuple[float, float]]] = field(default_factory=dict)
    most: float = 0.0  # megapixels that were drawn at once
    resident: int = 0  # bytes in use when the run began
    items: tuple[Item, ...] = ()
    began: float = 0.0
    steps: list[float] = field(default_factory=list)  # when each of the group's was done
    steps_to_do: int = 0
    finished: int = 0

    def __enter__(self) -> Self:
        """Note the memory in use at the start."""
        device = device_of(self.model)
        self.resident = in_use(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # what came before is not this run's
        return self

    def __exit__(self, *error: object) -> None:
        """Record the run's time and memory, also after an error."""
        if self.groups:
            self.record()

    def on_event(self, event: Event) -> None:
        """Take the time of an event."""
        now = time.perf_counter()
        if isinstance(event, Started):
            if self.steps and len(self.steps) == self.steps_to_do:  # still to be written, if at all
                self.end_group(now)
            self.items, self.began, self.steps, self.finished = event.items, now, [], 0
        elif isinstance(event, Step):
            self.steps.append(now)
            self.steps_to_do = event.steps
        elif isinstance(event, Finished) and event.item in self.items:
            self.finished += 1
            if self.finished == len(self.items) and self.steps:
                self.end_group(now)
                self.steps = []

    def end_group(self, now: float) -> None:
        """Note a group's times; its first step counts apart, since it includes the prompts."""
        request = self.items[0].request
        size = history.megapixels(request) * len(self.items)
        costs = history.costs(request)
        later = sum(costs[1 : len(self.steps)])
        if later:
            per_evaluation = (self.steps[-1] - self.steps[0]) / later
        else:
            per_evaluation = (self.steps[-1] - self.began) / costs[0]
        other = max(now - self.began - per_evaluation * sum(costs), 0.0)
        timed = self.groups.setdefault(request.token_merging, [])
        timed.append((per_evaluation / size, other / size))
        self.most = max(self.most, size)

    def record(self) -> None:
        """Add the run to the history."""
        device = device_of(self.model)
        networks = [self.model.network, self.model.vae, *self.model.text.encoders]
        weights = sum(p.nbytes for network in networks for p in network.parameters())
        drawing = max(peak(device) - self.resident, 0)
        count = _weight_count(self.model.network)
        family, dtype = self.model.family.name, precision(self.model)
        base = max(self.resident - weights, 0)
        for merging, timed in self.groups.items():
            per_evaluation, other = (fmean(each) for each in zip(*timed, strict=True))
            speed = Speed(per_evaluation, other, self.load, base, drawing / self.most)
            mode = self.model.memory.placement.mode
            key = history.key(family, count, device.type, dtype, merging, mode)
            history.record(key, speed)


def peak(device: torch.device) -> int:
    """The most bytes in use so far; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _weight_count(network: nn.Module) -> int:
    """The number of a network's weights, of packed ones as if they were not."""
    layers = (part for part in network.modules() if isinstance(part, Linear | Conv2d))
    packed = {id(one.weight): prod(one.packed_shape) for one in layers if one.packed_shape}
    return sum(packed.get(id(value), value.numel()) for value in network.parameters())
