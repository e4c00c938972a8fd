"""File locks, which end with their process, however that ends."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":  # there, files count as abandoned by their age
    import fcntl

LOCK = ".txt2img-{}.lock"
ABANDONED_SECONDS = 3600  # where there are no locks
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def hold(descriptor: int) -> bool | None:
    """Lock an open file until all its descriptors are closed.

    False if another process has locked it, None if files cannot be locked here.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still has that path."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except OSError:
        return False


def claim(path: Path) -> int | None:
    """Create and lock a file; None if another process has locked it. OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o666)
        if hold(descriptor) is False:
            os.close(descriptor)
            return None
        if same_file(descriptor, path):
            return descriptor
        os.close(descriptor)  # its owner removed it in between


def release(path: Path, descriptor: int) -> None:
    """Unlock and remove a claimed file."""
    with suppress(OSError):
        path.unlink()
    os.close(descriptor)


def remove_stale(folder: Path, *patterns: str) -> None:
    """Remove the files matching patterns that no process has locked."""
    for pattern in patterns:
        for path in folder.glob(pattern.format("*")):
            with suppress(OSError):
                _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | _NO_LINKS | getattr(os, "O_NONBLOCK", 0))
    try:
        locked = hold(descriptor)
        is_old = time.time() - os.fstat(descriptor).st_mtime > ABANDONED_SECONDS
        if (locked or (locked is None and is_old)) and same_file(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)
