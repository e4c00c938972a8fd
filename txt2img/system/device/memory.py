"""Memory: how a model is kept in it, its fallbacks and warnings, out-of-memory errors."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from txt2img.errors import OutOfMemory
from txt2img.system import resources
from txt2img.system.device.offload import Placement

# Messages of out-of-memory errors that have no class of their own: on a CPU, on Apple's GPUs, and
# from Nvidia's libraries.
SIGNS = (
    *("DefaultCPUAllocator: can't allocate", "MPS backend out of memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
ONEDNN = "could not create a primitive"
LITTLE = 2**28  # bytes, with which its kernels may have failed for want of memory
CPU = torch.device("cpu")
IMAGE_ENCODER = "image encoder"  # in records of its fallback
T = TypeVar("T")


@dataclass
class MemoryState:
    """The memory settings of a model, and the fallbacks it used; each warning is given once."""

    tiling: str = "auto"  # of the VAE; or "on", "off"
    low_memory: bool = False  # weights stay in their stored dtype
    optimize: bool = True  # networks, for speed
    quantized: str | None = None  # of models.optimize.quantize.KINDS, for the network
    placement: Placement = field(default_factory=Placement)
    cpu_budget: int | None = None  # bytes for optimised weights; measured at the first use
    given: set[str] = field(default_factory=set)  # warnings, so that none comes twice
    pending: list[str] = field(default_factory=list)  # warnings to show
    used: dict[str, str] = field(default_factory=dict)  # fallbacks of the image being drawn

    def warn(self, line: str) -> None:
        """Add a warning for the user, once."""
        if line not in self.given:
            self.given.add(line)
            self.pending.append(line)

    def pop_warnings(self) -> list[str]:
        """Take the warnings that were not shown yet."""
        lines, self.pending = self.pending, []
        return lines


def is_oom(error: BaseException) -> bool:
    """Whether an error means out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    if ONEDNN in text:  # of memory, and of what it cannot do
        return resources.available() < LITTLE
    return any(sign in text for sign in SIGNS)


def free() -> None:
    """Release cached GPU memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def oom_as_error(purpose: str) -> Iterator[None]:
    """Turn the device's out-of-memory errors into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        raise OutOfMemory(
            f"the device has not enough memory for {purpose}; choose a smaller size, "
            "--batch-size 1 or --device cpu"
        ) from error


def first_that_fits(
    attempts: Iterable[Callable[[], T]], purpose: str, release: Callable[[], None] = free
) -> T:
    """The result of the first attempt that memory suffices for; `release` runs after the others.

    Raises the last one's OutOfMemory, of `purpose`.
    """
    last_error: OutOfMemory | None = None
    for attempt in attempts:
        try:
            with oom_as_error(purpose):
                return attempt()
        except OutOfMemory as error:
            last_error = OutOfMemory(str(error))  # without the frames that hold the memory
        release()
    assert last_error is not None
    raise last_error


@contextmanager
def moved_to(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Move a network to a device and dtype, and back afterwards.

    Its weights come back bit for bit if `dtype` is no less precise than its own.
    """
    weight = next(network.parameters())
    placement = weight.device, weight.dtype
    if placement == (device, dtype):
        yield
        return
    try:
        network.to(device, dtype)
        yield
    finally:
        network.to(*placement)
