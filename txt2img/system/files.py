"""Files: opened safely, parsed strictly, written atomically, and locked.

A lock ends with its process, however that ends.
"""

import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedReader, FileIO
from pathlib import Path

from txt2img.errors import BadFile
from txt2img.system.text import shown

if sys.platform != "win32":  # there, files count as abandoned by their age
    import fcntl

# A FIFO must not block. Where a flag does not exist it is not needed.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
JSON_MAX = 16 * 2**20  # bytes
NO_CONFIG = ": no configuration"
ADVICE = "download the real file again"
TEMPORARY = ".txt2img-{}.tmp"  # beside the file that it becomes
LOCK = ".txt2img-{}.lock"
_HOMES = {"CONFIG": ".config", "DATA": ".local/share", "STATE": ".local/state", "CACHE": ".cache"}
ABANDONED_SECONDS = 3600  # where there are no locks
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


def reason(error: Exception) -> str:
    """The system's reason for an error, in lower case, without its number and path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.lower()


def expand_user(text: str | Path) -> Path:
    """A path with ~ as a home folder; ~NAME stays as it is if there is no such user."""
    return Path(os.path.expanduser(text))


def user_folder(kind: str) -> Path:
    """This program's CONFIG, DATA, STATE or CACHE folder (XDG Base Directory Specification)."""
    base = os.environ.get(f"XDG_{kind}_HOME") or os.path.expanduser(f"~/{_HOMES[kind]}")
    return Path(base) / "txt2img"


def exists(path: Path) -> bool:
    """Whether there is something at a path. BadFile if its folder may not be searched."""
    try:
        path.lstat()
    except PermissionError as error:
        raise BadFile(*cannot_read([error])) from error
    except (OSError, ValueError):
        return False
    return True


def walk(folder: Path, unreadable: list[OSError]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder as os.walk does, if there is one; what cannot be read goes to `unreadable`."""

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            unreadable.append(error)

    for at, folders, names in os.walk(folder, onerror=note):
        yield Path(at), folders, names


def entries(folder: Path) -> list[Path]:
    """The paths of what is in a folder, sorted. BadFile if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise BadFile(*cannot_read([error])) from error


def cannot_read(errors: Iterable[OSError]) -> list[str]:
    """A line for each error in reading a file or folder, with its path."""
    return [f"cannot read {shown(str(e.filename), 200)}: {reason(e)}" for e in errors]


class _RegularFile(FileIO):
    """A file open for reading whose errors, of a failing disk or a lost network, are BadFile."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, "rb")
        self.path = path

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Read into a buffer. BadFile."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise BadFile(f"cannot read {shown(self.path)}: {reason(error)}") from error

    def readall(self) -> bytes:
        """Read up to the end. BadFile."""
        try:
            return super().readall()
        except OSError as error:
            raise BadFile(f"cannot read {shown(self.path)}: {reason(error)}") from error


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. BadFile if it is missing, unreadable or not a regular file.

    Its reads raise BadFile, too.
    """
    try:
        descriptor = os.open(path, FLAGS)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadFile(f"{shown(path)} is not a regular file")
        return BufferedReader(_RegularFile(descriptor, path))
    except (OSError, ValueError) as error:
        raise BadFile(f"cannot read {shown(path)}: {reason(error)}") from error


def read_bounded(path: Path, most: int, advice: str = "") -> bytes:
    """Read a file of at most `most` bytes. BadFile."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise BadFile(f"{shown(path)} is larger than {most >> 20} MiB{advice}")
    return content


def parse_json(text: str) -> object:
    """Parse JSON. ValueError if it is malformed, too deep, not finite, or has a key twice."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise _InvalidJSON("a key is there twice")
        return table

    def constant(name: str) -> float:
        raise _InvalidJSON(f"{name} is not a number")

    try:
        parsed: object = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"broken JSON: {error}") from error
    except _InvalidJSON:
        raise
    except ValueError:
        raise ValueError("broken JSON: a number of too many digits") from None
    return parsed


class _InvalidJSON(ValueError):
    """Well-formed JSON that is refused; its text says why."""


def parse_object(content: bytes, name: str) -> dict[str, object]:
    """Parse the JSON object in the bytes of a file called `name`. Raises BadFile."""
    try:
        value = parse_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadFile(f"{shown(name)}: broken JSON: not UTF-8 text; {ADVICE}") from error
    except ValueError as error:
        raise BadFile(f"{shown(name)}: {error}; {ADVICE}") from error
    if not isinstance(value, dict):
        raise BadFile(f"{shown(name)}: not a JSON object; {ADVICE}")
    return value


def stat_key(status: os.stat_result) -> tuple[int, int, int]:
    """Size, time and inode, by which a file that was replaced is noticed."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object from a file of at most 16 MiB. Raises BadFile."""
    return parse_object(read_bounded(path, JSON_MAX, NO_CONFIG), path.name)


def write_atomic(data: bytes, path: Path, overwrite: bool, fsync: bool = True) -> None:
    """Write a file whole or not at all. FileExistsError, OSError.

    With `fsync` it survives a power cut. Two programs never both get one name.
    """
    if overwrite and os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise FileExistsError
    while True:
        temporary = path.with_name(TEMPORARY.format(secrets.token_hex(8)))
        if _write_and_name(data, temporary, path, overwrite, fsync):
            break
    if fsync:
        with suppress(OSError):  # some file systems cannot flush folders
            sync_folder(path.parent)


def _write_and_name(data: bytes, temporary: Path, path: Path, overwrite: bool, fsync: bool) -> bool:
    """Write a temporary file and rename it; False if another process removed it first. OSError.

    It is locked until it has its name: unlocked ones were left by killed runs, and are removed.
    """
    holder = None
    try:
        with os.fdopen(create(temporary), "wb") as file:
            holder = os.dup(file.fileno())
            if hold(holder) is False or not same_file(holder, temporary):
                return False
            file.write(data)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            link(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)
        if holder is not None:
            os.close(holder)


def create(path: Path) -> int:
    """Create a file, with the permissions of the umask. Returns its descriptor. OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)


def lock_file(folder: Path) -> tuple[Path, int] | None:
    """Create an empty locked file; None, and no file, if files cannot be locked here. OSError."""
    while True:
        path = folder / TEMPORARY.format(secrets.token_hex(8))
        descriptor = create(path)
        holds = hold(descriptor)
        if holds and same_file(descriptor, path):  # or another process removed it first
            return path, descriptor
        os.close(descriptor)
        if holds is None:
            path.unlink(missing_ok=True)
            return None


def link(temporary: Path, path: Path) -> None:
    """Rename a file unless the name is taken (FileExistsError)."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: reserve the name, then replace
        os.close(create(path))
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Flush a folder, so that a power cut cannot undo a rename. OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
