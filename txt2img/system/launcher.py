"""The processes that one launcher started: how many share the work, and which of them this is.

accelerate launch and torchrun tell each process by three variables, MPI's launchers by others.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from txt2img.errors import BadRequest
from txt2img.system.text import shown

T = TypeVar("T")
# Which one, of how many, and which one on its machine. All three, or there is no launcher.
VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
PLACE = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of its launch; by itself it is the only one."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    @property
    def can_rendezvous(self) -> bool:
        """Whether there are others, and a place where they can be spoken to."""
        return self.world > 1 and all(os.environ.get(name) for name in PLACE)

    @property
    def place(self) -> str:
        """Where the processes of a launch find each other, for messages."""
        return ":".join(os.environ.get(name, "") for name in PLACE)

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """This process's part of the work: every world-th item."""
        return islice(items, self.rank, None, self.world)


def found() -> ProcessGroup:
    """What the environment says of a launch. BadRequest if that makes no sense."""
    for names in VARIABLES:
        texts = [os.environ.get(name, "") for name in names]
        if all(texts):
            rank, world, local = (_whole(*pair) for pair in zip(names, texts, strict=True))
            if rank >= world:
                raise BadRequest(f"{names[0]} must be below {names[1]}, got {rank} and {world}")
            return ProcessGroup(rank, world, local)
    return ProcessGroup()


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise BadRequest(f"{name} must be a whole number as a launcher sets it, got {shown(text)}")
    return int(text)
