"""The standard streams: there whatever was closed, and made anew for each call of a worker."""

import io
import os
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TextIO

CLOSED: set[int] = set()  # the descriptors that were so when the program, or a call, began


def open_missing() -> None:
    """Open what of the descriptors 0 … 2 is closed, and make the streams that are missing."""
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
    """While it lasts, the standard streams are new ones on the descriptors 0 … 2.

    `on_use` is called before input is taken from standard input or results go to standard output.
    Those that were `closed` to who called are known as such.
    """

    def __init__(self, on_use: Callable[[], None], closed: Collection[int] = ()) -> None:
        self.on_use, self.closed = on_use, set(closed)

    def __enter__(self) -> None:
        """Make the streams, in the encodings of those that there are."""
        self._swap()
        self.own = (sys.stdin, sys.stdout, sys.stderr)
        stdin, stdout, stderr = self.own
        sys.stdin = _text(io.BufferedReader(_Noticed(0, "r", self.on_use)), stdin)
        noticed: io.RawIOBase = _Noticed(1, "w", self.on_use)
        sys.stdout = _text(io.BufferedWriter(noticed), stdout)
        sys.stderr = _text(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), stderr)

    def __exit__(self, *error: object) -> None:
        """Write out what they hold, and put those that were before in their place."""
        self._swap()
        made = (sys.stdin, sys.stdout, sys.stderr)
        sys.stdin, sys.stdout, sys.stderr = self.own
        for stream in made:
            with suppress(OSError, ValueError):
                stream.close()

    def _swap(self) -> None:
        """The caller's closed descriptors in the place of this process's own, and back."""
        own = set(CLOSED)
        CLOSED.clear()
        CLOSED.update(self.closed)
        self.closed = own


class _Noticed(io.FileIO):
    """A descriptor, which stays open, and whose use is noticed."""

    def __init__(self, number: int, mode: str, on_use: Callable[[], None]) -> None:
        super().__init__(number, mode, closefd=False)
        self.on_use = on_use

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """What a buffered reader calls to read a part."""
        self.on_use()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        """What it calls to read all."""
        self.on_use()
        return super().readall()

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        """What a buffered writer calls."""
        self.on_use()
        return super().write(data)


def _text(buffer: io.BufferedReader | io.BufferedWriter, like: TextIO) -> TextIO:
    """A text stream over a buffer, encoded like another; each line is written at once."""
    return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=True)
