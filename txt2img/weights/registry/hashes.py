"""SHA-256 hashes of weight files, cached on disk, since gigabytes take seconds to read."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from txt2img.system.files import open_regular, stat_key, user_folder, write_atomic

BLOCK = 2**22  # bytes
OLD_DIGITS = 8  # of A1111's first hash


@dataclass(frozen=True)
class HashProgress:
    """Bytes of a file hashed so far, and in the end its digest (64 hex digits)."""

    done: int
    size: int
    digest: str = ""


def sha256(path: Path, start: int = 0) -> str:
    """The SHA-256 (64 hex digits) of a file from the byte `start` on."""
    *_, last = hash_progress(path, start)
    return last.digest


def hash_progress(path: Path, start: int = 0) -> Iterator[HashProgress]:
    """Hash a file in steps; the last has the digest, which is cached by path, size and time."""
    with open_regular(path) as file:
        was = os.fstat(file.fileno())
        size = was.st_size - start
        cached = _cache_path(path, was, start)
        if (digest := _load(cached)) is not None:
            yield HashProgress(size, size, digest)
            return
        file.seek(start)
        running = hashlib.sha256()
        while block := file.read(BLOCK):
            running.update(block)
            yield HashProgress(file.tell() - start, size)
    digest = running.hexdigest()
    _store(cached, digest)
    yield HashProgress(size, size, digest)


def tensors_start(path: Path) -> int:
    """The byte where a safetensors file's tensors begin; a LoRA's hash is taken from there."""
    with open_regular(path) as file:
        return 8 + int.from_bytes(file.read(8), "little")


def model_hash(paths: Sequence[Path]) -> str:
    """A1111's short hash: ten digits of the SHA-256, or of that of several files' digests."""
    return _ten([sha256(path) for path in paths])


@contextmanager
def hash_in_background(paths: Sequence[Path]) -> Iterator[Callable[[], str]]:
    """Compute `model_hash` in another thread; calling what this gives waits for it.

    The thread stops when the context ends first.
    """
    stop = Event()

    def digests() -> str:
        finished = []
        for path in paths:
            for progress in hash_progress(path):
                if stop.is_set():
                    return ""
                digest = progress.digest
            finished.append(digest)
        return _ten(finished)

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(digests).result
        finally:
            stop.set()


def cached_hash(paths: Sequence[Path]) -> str:
    """`model_hash` if it is cached and the files are unchanged, else empty. BadFile."""
    digests = []
    for path in paths:
        with open_regular(path) as file:
            digests.append(_load(_cache_path(path, os.fstat(file.fileno()), 0)) or "")
    return _ten(digests) if all(digests) else ""


def matches(path: Path, digits: str) -> bool:
    """Whether A1111's short hash names a file: the old hash, or a cached SHA-256. BadFile."""
    if len(digits) == OLD_DIGITS and old_hash(path) == digits:
        return True
    return cached_hash([path]).startswith(digits[:10])


def old_hash(path: Path) -> str:
    """A1111's hash before 2023: eight digits, of 64 KiB that begin at the first MiB."""
    with open_regular(path) as file:
        file.seek(2**20)
        return hashlib.sha256(file.read(2**16)).hexdigest()[:OLD_DIGITS]


def _ten(digests: list[str]) -> str:
    if len(digests) == 1:
        return digests[0][:10]
    return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()[:10]


def set_compiler_cache() -> str:
    """Set torch's compiler cache to a folder in the user's cache, and give it."""
    return os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache_dir("compiled")))


def _cache_path(path: Path, was: os.stat_result, start: int) -> Path:
    """The cache's file for the digest of a file in the state `was`."""
    key = "\0".join(map(str, (path.resolve(), *stat_key(was))))
    key += f"\0{start}" if start else ""
    return _cache_dir() / hashlib.sha256(os.fsencode(key)).hexdigest()


def _cache_dir(kind: str = "sha256") -> Path:
    return user_folder("CACHE") / kind


def _load(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _store(path: Path, digest: str) -> None:
    """Cache a digest, if that is possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(digest.encode("ascii"), path, overwrite=True, fsync=False)
    except OSError:
        return
