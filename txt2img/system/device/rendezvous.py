"""What the processes of one launch tell each other: a seed at the start, the outcome at the end.

Pictures need none of it, so a table of texts that one process keeps for all is enough: the store
by which torch's processes find each other. Who waits for it looks again and again, and so can
still be stopped by a signal.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Protocol

from torch.distributed.rendezvous import rendezvous

from txt2img.errors import Txt2imgError
from txt2img.system.launcher import ProcessGroup

POLL_SECONDS = 0.1
COME = timedelta(minutes=10)  # all of a launch start at once; then they draw as long as it takes
LEAVE_SECONDS = 60.0


class Table(Protocol):
    """Texts by their keys, for all processes of a launch: torch's stores have no public type."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


@cache
def meet(launch: ProcessGroup) -> Table:
    """The table that all of a launch share, once they are there. Txt2imgError if they are not."""
    try:
        meeting = rendezvous("env://", launch.rank, launch.world, timeout=COME)
        store: Table = next(meeting)[0]
        store.set(f"txt2img/here/{launch.rank}", "")
        store.wait([f"txt2img/here/{i}" for i in range(launch.world)], COME)
    except (RuntimeError, ValueError) as error:  # of a place that is none, or nobody came
        reason = str(error).split("\n")[0]
        line = f"the launch's processes do not meet at {launch.place}: {reason}"
        raise Txt2imgError(line) from error
    return store


def agreed(launch: ProcessGroup, value: int) -> int:
    """The number that the first process has. Txt2imgError."""
    store = meet(launch)
    if launch.is_main:
        store.set("txt2img/agreed", str(value))
        return value
    wait(store, ["txt2img/agreed"])
    return int(store.get("txt2img/agreed"))


def gathered(launch: ProcessGroup, text: str) -> list[str]:
    """What each process has to say, once all have come to this. Txt2imgError."""
    store, everyone = meet(launch), range(launch.world)
    store.set(f"txt2img/end/{launch.rank}", text)
    wait(store, [f"txt2img/end/{i}" for i in everyone])
    texts = [store.get(f"txt2img/end/{i}").decode() for i in everyone]
    store.set(f"txt2img/read/{launch.rank}", "")
    if launch.is_main:  # which may be the one that keeps the table
        wait(store, [f"txt2img/read/{i}" for i in everyone], LEAVE_SECONDS)
    return texts


def wait(store: Table, keys: Sequence[str], seconds: float = float("inf")) -> None:
    """Wait for all of these to be in the table, or so long. Txt2imgError if the table is gone."""
    end = time.monotonic() + seconds
    try:
        while not store.check(list(keys)) and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
    except RuntimeError as error:
        raise Txt2imgError("the first process of this launch is gone; see what it said") from error
