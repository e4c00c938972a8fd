"""SHA-256 of weight files, kept in the user's cache: gigabytes take seconds to read.

Where in that cache other things lie that are made once.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from txt2img.system.files import open_regular, stat_key, write_atomic

BLOCK = 2**22  # bytes


@dataclass(frozen=True)
class Read:
    """How far a file is read, in bytes, and in the end its digest (64 hex digits)."""

    done: int
    size: int
    digest: str = ""


def sha256(path: Path, start: int = 0) -> str:
    """The SHA-256 (64 hex digits) of a file from the byte `start` on."""
    *_, last = hashing(path, start)
    return last.digest


def hashing(path: Path, start: int = 0) -> Iterator[Read]:
    """The same, saying now and then how far it is; the last has the digest.

    It is kept in the user's cache by place, size and time.
    """
    with open_regular(path) as file:
        was = os.fstat(file.fileno())
        size = was.st_size - start
        kept = _kept(path, was, start)
        if (known := _recall(kept)) is not None:
            yield Read(size, size, known)
            return
        file.seek(start)
        running = hashlib.sha256()
        while block := file.read(BLOCK):
            running.update(block)
            yield Read(file.tell() - start, size)
    digest = running.hexdigest()
    _remember(kept, digest)
    yield Read(size, size, digest)


def tensors_start(path: Path) -> int:
    """Where a safetensors file's tensors begin: LoRAs are told apart by the hash from there on."""
    with open_regular(path) as file:
        return 8 + int.from_bytes(file.read(8), "little")


def model_hash(paths: Sequence[Path]) -> str:
    """Ten digits of the file's SHA-256, as other programs write them; of several files', of all."""
    return _ten([sha256(path) for path in paths])


@contextmanager
def hashed_beside(paths: Sequence[Path]) -> Iterator[Callable[[], str]]:
    """`model_hash`, reckoned by another thread while files are read: calling it waits for the end.

    A thread that nobody waits for stops soon.
    """
    stop = Event()

    def digests() -> str:
        found = []
        for path in paths:
            for read in hashing(path):
                if stop.is_set():
                    return ""
                digest = read.digest
            found.append(digest)
        return _ten(found)

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(digests).result
        finally:
            stop.set()


def known_hash(paths: Sequence[Path]) -> str:
    """The same if it was reckoned before and the files are as they were, else empty. BadFile."""
    digests = []
    for path in paths:
        with open_regular(path) as file:
            digests.append(_recall(_kept(path, os.fstat(file.fileno()), 0)) or "")
    return _ten(digests) if all(digests) else ""


def _ten(digests: list[str]) -> str:
    if len(digests) == 1:
        return digests[0][:10]
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()[:10]


def compiler_cache() -> str:
    """The folder where torch's compiler keeps what it made, from now on the user's cache."""
    return os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache("compiled")))


def _kept(path: Path, was: os.stat_result, start: int) -> Path:
    """Where the digest of a file as it `was` is kept."""
    key = "\0".join(map(str, (path.resolve(), *stat_key(was))))
    key += f"\0{start}" if start else ""
    return _cache() / hashlib.sha256(os.fsencode(key)).hexdigest()


def _cache(kind: str = "sha256") -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "txt2img" / kind


def _recall(kept: Path) -> str | None:
    try:
        text = kept.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _remember(kept: Path, digest: str) -> None:
    """Keep a digest; a cache that cannot be written only costs time."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(digest.encode("ascii"), kept, overwrite=True, fsync=False)
    except OSError:
        return
