"""SHA-256 of weight files, kept in the user's cache: gigabytes take seconds to read.

Where in that cache other things lie that are made once.
"""

import hashlib
import os
import re
from collections.abc import Generator, Sequence
from pathlib import Path

from txt2img.disk import open_regular, publish, stamp

BLOCK = 2**22  # bytes


def sha256(path: Path, start: int = 0) -> str:
    """The SHA-256 (64 hex digits) of a file from the byte `start` on."""
    reading = hashing(path, start)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return str(end.value)


def hashing(path: Path, start: int = 0) -> Generator[tuple[int, int], None, str]:
    """The same, giving now and then how many bytes of how many are read.

    It is kept in the user's cache by place, size and time.
    """
    with open_regular(path) as file:
        was = os.fstat(file.fileno())
        kept = _kept(path, was, start)
        if (known := _recall(kept)) is not None:
            return known
        file.seek(start)
        running = hashlib.sha256()
        while block := file.read(BLOCK):
            running.update(block)
            yield file.tell() - start, was.st_size - start
        digest = running.hexdigest()
    _remember(kept, digest)
    return digest


def tensors_start(path: Path) -> int:
    """Where a safetensors file's tensors begin: LoRAs are told apart by the hash from there on."""
    with open_regular(path) as file:
        return 8 + int.from_bytes(file.read(8), "little")


def model_hash(paths: Sequence[Path]) -> str:
    """Ten digits of the file's SHA-256, as other programs write them; of several files', of all."""
    return _ten([sha256(path) for path in paths])


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
    key = "\0".join(map(str, (path.resolve(), *stamp(was))))
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
        publish(digest.encode("ascii"), kept, overwrite=True, lasting=False)
    except OSError:
        return
