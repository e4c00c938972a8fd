"""Exchange between a launch's processes, by accelerate: a seed at the start, results at the end."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState, utils
from torch import distributed

from txt2img.errors import Txt2imgError
from txt2img.system import launcher

START_TIMEOUT = timedelta(minutes=10)  # a launcher starts all processes at once
END_TIMEOUT = timedelta(days=7)  # then some draw longer than others


def broadcast(value: int) -> int:
    """The value of the first process, in all of them. Txt2imgError."""
    with _joined(START_TIMEOUT):
        return int(utils.broadcast(torch.tensor(value)))


def gather(text: str) -> list[str]:
    """The texts of all processes by rank, padded with spaces, once all are here. Txt2imgError."""
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    with _joined(END_TIMEOUT) as state:
        distributed.monitored_barrier(timeout=END_TIMEOUT)
        rows = utils.gather(utils.pad_across_processes(data, pad_index=ord(" ")))
        return [bytes(row.tolist()).decode() for row in rows.chunk(state.num_processes)]


@contextmanager
def _joined(timeout: timedelta) -> Iterator[PartialState]:
    """Join the launch's other processes over gloo, unless that is done.

    accelerate and torch.distributed do not know srun's variables, so they get torchrun's.
    """
    group = launcher.current()
    values = (group.rank, group.world, group.local)
    for name, value in zip(launcher.VARIABLES[0], values, strict=True):
        os.environ.setdefault(name, str(value))
    try:
        with warnings.catch_warnings(action="ignore"):  # of how many threads it lets torch use
            state = PartialState(cpu=True, timeout=timeout)
        yield state
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise Txt2imgError(f"the launch's processes do not meet: {reason}") from error
