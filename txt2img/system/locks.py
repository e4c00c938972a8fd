"""Files that a living process holds: a lock ends with its process, however that ends."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":  # which has no such locks: age must do there
    import fcntl

LOCK = ".txt2img-{}.lock"
ABANDONED_SECONDS = 3600  # where files cannot be locked
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def hold(descriptor: int) -> bool | None:
    """Hold an open file until all its descriptors are closed; False if another holds it.

    None means that files cannot be locked here.
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
    """Whether an open file still has that name."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def claim(path: Path) -> int | None:
    """A descriptor that holds the file `path`, made if need be; None if another has it. OSError."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o666)
        if hold(descriptor) is False:
            os.close(descriptor)
            return None
        if same_file(descriptor, path):
            return descriptor
        os.close(descriptor)  # whoever held it removed it in between


def release(path: Path, descriptor: int) -> None:
    """Give a claim back; its file goes."""
    with suppress(OSError):
        path.unlink()
    os.close(descriptor)


def remove_stale(folder: Path, *patterns: str) -> None:
    """Remove the files of such names that no living process holds."""
    for pattern in patterns:
        for path in folder.glob(pattern.format("*")):
            with suppress(OSError):
                _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | _NO_LINKS | getattr(os, "O_NONBLOCK", 0))
    try:
        held = hold(descriptor)
        old = time.time() - os.fstat(descriptor).st_mtime > ABANDONED_SECONDS
        if (held or (held is None and old)) and same_file(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)
