"""Memory and cores that this process may use, and how a model is kept in that memory."""

import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from txt2img.errors import BadRequest, OutOfMemory
from txt2img.system.text import format_size, shown

MODES = ("none", "model", "sequential", "auto")
ROOM = 2 * 2**30  # bytes of GPU memory for all but weights
CPU_ROOM = 2**29  # bytes of main memory for all but weights, the libraries included
MARGIN = 10**8  # bytes of main memory that libraries take while they compute
MODE_TEXT = {
    "model": "each part of the model comes {} for its use",
    "sequential": "the network comes {} block by block",
}
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SIZE = Path("/proc/self/statm")
PROCESSORS = Path("/sys/devices/system/cpu")
THREADS = "OMP_NUM_THREADS"
LIBRARIES = 2**29  # bytes of address space, which torch's libraries are mapped into
# Of glibc's malloc.h: M_TRIM_THRESHOLD, the free bytes at the heap's end that are kept, and
# M_MMAP_THRESHOLD, the size from which a block is mapped, and unmapped as soon as it is freed.
HEAP_OPTIONS = ((-1, 2**31 - 1), (-3, 2**30))


def available() -> int:
    """Available bytes of main memory, within the limits of the container and the process.

    Half of all memory where the system does not tell, 0 where it tells nothing.
    """
    limits = [limit for limit in (_system(), _group(), _own()) if limit is not None]
    return max(0, min(limits, default=0))


def resident() -> int:
    """Bytes of main memory that this process has; 0 if unknown."""
    pages = _text(SIZE).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def choose_mode(
    mode: str,
    device: str,
    sizes: Mapping[str, int],
    free: int | None,
    limit: int | None = None,
) -> tuple[str, str]:
    """The mode for parts of these sizes in bytes, and a line about it, empty if it is "none".

    `free` bytes include what `limit`, of --max-memory, allows. BadRequest.
    """
    if mode not in MODES:
        raise BadRequest(f"--offload {shown(mode)}; choose from {', '.join(MODES)}")
    is_auto = mode == "auto"
    if is_auto:
        mode = fitting(sizes, free, CPU_ROOM if device == "cpu" else ROOM)
    if mode == "none":
        return mode, ""
    way = "from its file" if device == "cpu" else f"to {device}"
    line = f"Offload: {MODE_TEXT[mode].format(way)}"
    if free is not None and (is_auto or limit is not None):
        have = f"{format_size(max(free, 0))} free"
        if limit is not None:
            have = f"--max-memory {format_size(limit)}"
        line += f" ({format_size(sum(sizes.values()))} of weights, {have})"
    return mode, line


def fitting(sizes: Mapping[str, int], free: int | None, room: int = ROOM) -> str:
    """The fastest mode that leaves `room` bytes of a device's memory."""
    if free is None or sum(sizes.values()) + room <= free:
        return "none"
    return "model" if max(sizes.values()) + room <= free else "sequential"


def require_address_space() -> None:
    """Raise OutOfMemory if `ulimit -v` leaves too little for torch's libraries.

    Their loader ends the process without a word.
    """
    if (left := _own()) is not None and left < LIBRARIES:
        raise OutOfMemory(
            f"the limit on this process's memory (ulimit -v) leaves {max(left, 0) >> 20} MiB; "
            f"loading the libraries alone takes {LIBRARIES >> 20} MiB"
        )


def cores() -> int | None:
    """The physical cores to use; None if unknown, or if OMP_NUM_THREADS is set."""
    if THREADS in os.environ or not hasattr(os, "sched_getaffinity"):
        return None
    sharing = [
        _text(PROCESSORS / f"cpu{number}" / "topology" / "thread_siblings_list").strip()
        for number in os.sched_getaffinity(0)
    ]
    quota = re.fullmatch(r"(\d+) (\d+)", _text(CGROUP / "cpu.max").strip())
    limit = math.ceil(int(quota[1]) / int(quota[2])) if quota and int(quota[2]) else len(sharing)
    return max(1, min(len(set(sharing)), limit)) if all(sharing) else None


def keep_heap() -> None:
    """Make glibc keep freed memory for the next allocations.

    By default it returns large blocks at once, and the system must clear each page of the next
    one: 12 % of the processor time of decoding one image after the other (SD 1.5, 256×256).
    """
    if mallopt := _of_libc("mallopt"):
        for option, value in HEAP_OPTIONS:
            mallopt(option, value)


def trim_heap() -> None:
    """Return the free memory that is kept to the system."""
    if malloc_trim := _of_libc("malloc_trim"):
        malloc_trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function of the C library on Linux, if it has one of that name."""
    import ctypes  # not needed to ask for the available memory

    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _system() -> int | None:
    """The available bytes of the machine."""
    for line in _text(MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 0


def _group() -> int | None:
    """The bytes left of a container's limit; its cached files can be dropped."""
    limit, used = _text(CGROUP / "memory.max").strip(), _text(CGROUP / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    rows = (line.split() for line in _text(CGROUP / "memory.stat").splitlines())
    cached = next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
    return int(limit) - int(used) + cached


def _own() -> int | None:
    """The bytes left of `ulimit -v`."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _text(SIZE).split()
    if limit == resource.RLIM_INFINITY or not pages:
        return None
    return limit - int(pages[0]) * resource.getpagesize()


def _text(path: Path) -> str:
    """The text of a system file, empty if there is none."""
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeError):
        return ""
