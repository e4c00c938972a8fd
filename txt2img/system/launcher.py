"""The processes of one launch, read from the environment, since --help and --dry-run need no torch.

accelerate launch and torchrun set three variables for each process, MPI and srun others; the
jobs of an array, which know nothing of each other, have a number and a count.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from txt2img.errors import BadRequest
from txt2img.system.text import shown

T = TypeVar("T")
# Rank, world size and rank on the own machine; only all three together mean a launch.
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
VARIABLES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    SRUN,  # last: srun may start other launchers, one on each machine
)
STEP = "SLURM_STEP_ID"  # only srun sets it: the shell of sbatch has a rank too, and draws all
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class ArrayVariables:
    """The variables of a scheduler that starts the jobs of an array."""

    scheduler: str
    index: str
    count: str
    first: str = ""  # the lowest index; without it, 0
    step: str = ""
    last: str = ""
    advice: str = ""  # where the count comes from


ARRAYS = (
    ArrayVariables(
        "Slurm's array",
        *("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"),
        *("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_MAX"),
    ),
    ArrayVariables(
        "Kubernetes' indexed job",
        *("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
        advice="; set it in the manifest to the number of completions",
    ),
    ArrayVariables("AWS Batch's array", "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
)


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among those of its launch; by default it is the only one."""

    rank: int = 0
    world: int = 1
    local: int = 0
    by_srun: bool = field(default=False, compare=False)  # which may start unlike ones, too

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
        if all(texts) and (names != SRUN or os.environ.get(STEP)):
            rank, world, local = map(_number, names)
            if rank >= world:
                raise BadRequest(f"{names[0]} must be below {names[1]}, got {rank} and {world}")
            if world < (tasks := _srun_tasks()):
                raise BadRequest(
                    f"{names[1]} is {world}, but srun has started {tasks} processes, which would "
                    "all draw the same; give srun one of --ntasks, or leave the launcher out"
                )
            return ProcessGroup(rank, world, local, names == SRUN)
    return ProcessGroup()


def array_part() -> tuple[int, int]:
    """This job's part of an array's work, from 1, and the number of parts. BadRequest."""
    found = [array for array in ARRAYS if os.environ.get(array.index)]
    if not found:
        known = ", ".join(array.index for array in ARRAYS)
        raise BadRequest(f"--shard auto: no job of an array sets {known}; give I/N, as 2/8")
    if len(found) > 1:
        both = " and ".join(f"{array.index} of {array.scheduler}" for array in found)
        raise BadRequest(f"--shard auto: there are {both}; give I/N, as 2/8")
    array = found[0]
    if not os.environ.get(array.count):
        raise BadRequest(
            f"--shard auto: {array.index} is set, but {array.count} is not{array.advice}"
        )
    index, count = _number(array.index), _number(array.count)
    first = _number(array.first) if os.environ.get(array.first) else 0
    step = max(1, _number(array.step)) if os.environ.get(array.step) else 1
    last = _number(array.last) if os.environ.get(array.last) else first + (count - 1) * step
    if not first <= index <= last or last != first + (count - 1) * step or (index - first) % step:
        raise BadRequest(
            f"--shard auto: {array.index} is {index} of {count} from {first} in steps of {step}, "
            "which leaves parts out; number the jobs evenly, as 0-7"
        )
    return (index - first) // step + 1, count


def _srun_tasks() -> int:
    """The processes of the step that srun has started; 1 outside of steps."""
    inside = os.environ.get(STEP) and os.environ.get(SRUN[1])
    return _number(SRUN[1]) if inside else 1


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise BadRequest(f"{name} must be a whole number as a launcher sets it, got {shown(text)}")
    return int(text)
