"""Standard streams: opened where they were closed, and replaced for each call of a worker."""

import io
import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TextIO

CLOSED: set[int] = set()  # descriptors that were closed when the program, or a call, began


def open_missing() -> None:
    """Open closed descriptors of 0 … 2 on /dev/null, and make the missing streams."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            CLOSED.add(descriptor)
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


class Streams:
    """Context in which the standard streams are new ones on the descriptors 0 … 2.

    `on_use` is called before standard input is read and before standard output is written.
    `closed` are the descriptors that the caller had closed.
    """

    def __init__(self, on_use: Callable[[], None], closed: Collection[int] = ()) -> None:
        self.on_use, self.closed = on_use, set(closed)

    def __enter__(self) -> None:
        """Replace the streams, keeping their encodings."""
        self._swap()
        self.own = (sys.stdin, sys.stdout, sys.stderr)
        stdin, stdout, stderr = self.own
        sys.stdin = _text(io.BufferedReader(_ReportedFile(0, "r", self.on_use)), stdin)
        stdout_file: io.RawIOBase = _ReportedFile(1, "w", self.on_use)
        sys.stdout = _text(io.BufferedWriter(stdout_file), stdout)
        sys.stderr = _text(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), stderr)

    def __exit__(self, *error: object) -> None:
        """Flush the streams and put the former ones back."""
        self._swap()
        replacements = (sys.stdin, sys.stdout, sys.stderr)
        sys.stdin, sys.stdout, sys.stderr = self.own
        for stream in replacements:
            with suppress(OSError, ValueError):
                stream.close()

    def _swap(self) -> None:
        """Exchange this process's CLOSED for the caller's, or back."""
        swapped = set(CLOSED)
        CLOSED.clear()
        CLOSED.update(self.closed)
        self.closed = swapped


class _ReportedFile(io.FileIO):
    """A descriptor that stays open and reports its use."""

    def __init__(self, number: int, mode: str, on_use: Callable[[], None]) -> None:
        super().__init__(number, mode, closefd=False)
        self.on_use = on_use

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Read a part; called by the buffered reader."""
        self.on_use()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        """Read everything; called by the buffered reader."""
        self.on_use()
        return super().readall()

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        """Write; called by the buffered writer."""
        self.on_use()
        return super().write(data)


def _text(buffer: io.BufferedReader | io.BufferedWriter, like: TextIO) -> TextIO:
    """A line-buffered text stream with the encoding of another."""
    return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=True)
