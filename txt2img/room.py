"""How much memory this process may still take."""

import os
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SIZE = Path("/proc/self/statm")


def available() -> int:
    """Bytes of main memory that are free or soon can be, within this process's own limits.

    Where the system does not say, half of its memory; where it says nothing, none.
    """
    sure = [found for found in (_system(), _group(), _own()) if found is not None]
    return max(0, min(sure, default=0))


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
