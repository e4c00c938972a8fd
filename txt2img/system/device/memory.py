"""How a run does with the memory and the precision there is, and what it tells of that."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from txt2img.errors import OutOfMemory
from txt2img.system.device.offload import Placement

# How torch words it where it has no class for it: on a CPU, on Apple's cards, and where one of
# Nvidia's libraries wants memory of its own.
SIGNS = (
    *("DefaultCPUAllocator: can't allocate", "MPS backend out of memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)
CPU = torch.device("cpu")


@dataclass
class MemoryState:
    """What a model may do to fit, and what it did; lines for the user are said once each."""

    tiling: str = "auto"  # of the VAE; or "on", "off"
    low_memory: bool = False  # weights stay as they are stored
    quantized: str | None = None  # how narrow the U-Net's weights were made
    placement: Placement = field(default_factory=Placement)
    cpu_budget: int | None = (
        None  # bytes for weights laid out for speed; found out when first asked
    )
    told: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    used: dict[str, str] = field(default_factory=dict)  # fallbacks of the picture being drawn

    def warn(self, line: str) -> None:
        """Keep a line for the user, unless it was said before."""
        if line not in self.told:
            self.told.append(line)
            self.waiting.append(line)

    def pop_warnings(self) -> list[str]:
        """The lines that nobody has heard yet."""
        lines, self.waiting = self.waiting, []
        return lines


def is_oom(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free() -> None:
    """Give unused memory back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def oom_as_error(what: str) -> Iterator[None]:
    """Turn the device's lack of memory into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        raise OutOfMemory(
            f"the device has not enough memory for {what}; choose a smaller size, "
            "--batch-size 1 or --device cpu"
        ) from error


@contextmanager
def moved_to(network: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """The network there and in that precision, afterwards as it was: bit for bit, if `dtype` is
    no less precise than its own.
    """
    weight = next(network.parameters())
    own_device, own_dtype = weight.device, weight.dtype
    if (own_device, own_dtype) == (device, dtype):
        yield
        return
    try:
        network.to(device, dtype)
        yield
    finally:
        network.to(own_device, own_dtype)
