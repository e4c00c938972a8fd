"""How much memory this process may still take and keeps, and on how many cores it may compute."""

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SIZE = Path("/proc/self/statm")
PROCESSORS = Path("/sys/devices/system/cpu")
THREADS = "OMP_NUM_THREADS"
# Of glibc's malloc.h, with what is told them: how much is kept that lies free at the heap's end,
# and from what size on a block lies outside the heap, to be unmapped as soon as it is free.
KEPT = ((-1, 2**31 - 1), (-3, 2**30))


def available() -> int:
    """Bytes of main memory that are free or soon can be, within this process's own limits.

    Where the system does not say, half of its memory; where it says nothing, none.
    """
    sure = [found for found in (_system(), _group(), _own()) if found is not None]
    return max(0, min(sure, default=0))


def cores() -> int | None:
    """The physical cores that this process may use; None where that is not known.

    None, too, where the user has said how many threads there are to be.
    """
    if THREADS in os.environ or not hasattr(os, "sched_getaffinity"):
        return None
    sharing = [
        _text(PROCESSORS / f"cpu{number}" / "topology" / "thread_siblings_list").strip()
        for number in os.sched_getaffinity(0)
    ]
    quota = re.fullmatch(r"(\d+) (\d+)", _text(CGROUP / "cpu.max").strip())
    most = math.ceil(int(quota[1]) / int(quota[2])) if quota and int(quota[2]) else len(sharing)
    return max(1, min(len(set(sharing)), most)) if all(sharing) else None


def keep_heap() -> None:
    """Have the C library keep memory that is freed for what is computed next.

    By itself glibc gives large blocks back at once, and then each page of the next one has to be
    asked for and cleared: a tenth of the time of decoding large pictures one after the other.
    Another library is left as it is.
    """
    if mallopt := _of_libc("mallopt"):
        for option, value in KEPT:
            mallopt(option, value)


def trim_heap() -> None:
    """Give the system the memory back that is kept so and free."""
    if malloc_trim := _of_libc("malloc_trim"):
        malloc_trim(0)


def _of_libc(name: str) -> Callable[..., int] | None:
    """A function of the C library on Linux, if there is one of that name."""
    import ctypes  # not needed by what only asks how much there is

    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _system() -> int | None:
    """What the machine has."""
    for line in _text(MEMINFO).splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return 0


def _group() -> int | None:
    """What a container may still take, if it is limited; files that are cached can go."""
    limit, used = _text(CGROUP / "memory.max").strip(), _text(CGROUP / "memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):
        return None
    rows = (line.split() for line in _text(CGROUP / "memory.stat").splitlines())
    cached = next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
    return int(limit) - int(used) + cached


def _own() -> int | None:
    """What `ulimit -v` leaves, where there is such a thing."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _text(SIZE).split()
    if limit == resource.RLIM_INFINITY or not pages:
        return None
    return limit - int(pages[0]) * resource.getpagesize()


def _text(path: Path) -> str:
    """A file of the system's, empty where there is none."""
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeError):
        return ""
