"""The processes of one launch, read from the environment, since --help and --dry-run need no torch.

accelerate launch and torchrun set three variables for each process, MPI's launchers others.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from txt2img.errors import BadRequest
from txt2img.system.text import shown

T = TypeVar("T")
# Rank, world size and rank on the own machine; only all three together mean a launch.
VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among those of its launch; by default it is the only one."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process reports for all."""
        return self.rank == 0

    @property
    def can_rendezvous(self) -> bool:
        """Whether there are other processes, and an address to meet them at."""
        return self.world > 1 and all(os.environ.get(name) for name in ADDRESS)

    def shard(self, items: Iterable[T]) -> Iterator[T]:
        """This process's share of the work: every world-th item."""
        return islice(items, self.rank, None, self.world)


def current() -> ProcessGroup:
    """The launch that the environment describes. BadRequest if that makes no sense."""
    for names in VARIABLES:
        texts = [os.environ.get(name, "") for name in names]
        if all(texts):
            rank, world, local = (_number(*pair) for pair in zip(names, texts, strict=True))
            if rank >= world:
                raise BadRequest(f"{names[0]} must be below {names[1]}, got {rank} and {world}")
            return ProcessGroup(rank, world, local)
    return ProcessGroup()


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise BadRequest(f"{name} must be a whole number as a launcher sets it, got {shown(text)}")
    return int(text)
