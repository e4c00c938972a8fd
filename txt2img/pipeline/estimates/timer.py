"""How long a run's steps and pictures take, and how much memory, noted for later estimates."""

import os
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean

import torch

from txt2img.images.resume import Item
from txt2img.pipeline.batch import Event, Started, Step, precision
from txt2img.pipeline.estimates import history
from txt2img.pipeline.estimates.history import Speed
from txt2img.pipeline.writer import Finished
from txt2img.weights.model import Model, device_of


@dataclass
class Timer:
    """Passes a run's events on, and notes what they took when it ends."""

    model: Model
    load: float  # seconds that it took to load
    # Of each group, by how its tokens are merged: a look and the rest, as in Speed.
    groups: dict[float, list[tuple[float, float]]] = field(default_factory=dict)
    most: float = 0.0  # megapixels that were drawn at once
    items: tuple[Item, ...] = ()
    began: float = 0.0
    steps: list[float] = field(default_factory=list)  # when each of the group's was done
    wanted: int = 0  # of them
    finished: int = 0

    def through(self, events: Iterable[Event]) -> Generator[Event, None, None]:
        """The events themselves; after the last one, or whatever ends them, a note is taken."""
        device = device_of(self.model)
        resident = in_use(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # what came before is not this run's
        try:
            for event in events:
                self.see(event)
                yield event
        finally:
            if self.groups:
                self.note(resident)

    def see(self, event: Event) -> None:
        """Take the time of an event."""
        now = time.perf_counter()
        if isinstance(event, Started):
            if self.steps and len(self.steps) == self.wanted:  # still to be written, if at all
                self.group(now)
            self.items, self.began, self.steps, self.finished = event.items, now, [], 0
        elif isinstance(event, Step):
            self.steps.append(now)
            self.wanted = event.steps
        elif isinstance(event, Finished) and event.item in self.items:
            self.finished += 1
            if self.finished == len(self.items) and self.steps:
                self.group(now)
                self.steps = []

    def group(self, now: float) -> None:
        """A group of pictures is done: the first step apart, which the prompts are read in."""
        request = self.items[0].request
        size = history.megapixels(request) * len(self.items)
        costs = history.costs(request)
        later = sum(costs[1 : len(self.steps)])
        if later:
            look = (self.steps[-1] - self.steps[0]) / later
        else:
            look = (self.steps[-1] - self.began) / costs[0]
        rest = max(now - self.began - look * sum(costs), 0.0)
        timed = self.groups.setdefault(request.token_merging, [])
        timed.append((look / size, rest / size))
        self.most = max(self.most, size)

    def note(self, resident: int) -> None:
        """Keep what the run took."""
        device = device_of(self.model)
        networks = [self.model.network, self.model.vae, *self.model.text.encoders]
        weights = sum(p.nbytes for network in networks for p in network.parameters())
        more = max(peak(device) - resident, 0)
        count = sum(p.numel() for p in self.model.network.parameters())
        family, dtype = self.model.family.name, precision(self.model)
        base = max(resident - weights, 0)
        for merging, timed in self.groups.items():
            look, rest = (fmean(each) for each in zip(*timed, strict=True))
            new = Speed(look, rest, self.load, base, more / self.most)
            history.record(history.key(family, count, device.type, dtype, merging), new)


def in_use(device: torch.device) -> int:
    """The bytes of memory that are in use on a card, or by this process; 0 if it is not known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, ValueError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def peak(device: torch.device) -> int:
    """The most bytes that were in use so far; 0 if it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
