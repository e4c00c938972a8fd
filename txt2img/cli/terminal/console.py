"""What reaches the terminal: results on stdout, all else on stderr, progress on a terminal only."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from txt2img.errors import BadOutput
from txt2img.system.text import escape

if TYPE_CHECKING:
    from rich.progress import Progress


class BrokenStdout(Exception):
    """Nobody reads the results any more."""


def print_line(line: str) -> None:
    """One result on stdout, escaped. StdoutGone if its reader has left, BadOutput if it fails."""
    encoding = sys.stdout.encoding or "utf-8"
    _write((escape(line, keep="\n") + "\n").encode(encoding, "backslashreplace"))


def print_row(*cells: object) -> None:
    """One result of several parts on stdout, with tabs between them and in none of them."""
    encoding = sys.stdout.encoding or "utf-8"
    row = "\t".join(escape(str(cell)) for cell in cells)
    _write((row + "\n").encode(encoding, "backslashreplace"))


def print_path(path: str | os.PathLike[str]) -> None:
    """One path on stdout, as the file system spells it."""
    _write(os.fsencode(path) + b"\n")


def print_bytes(data: bytes) -> None:
    """A whole file on stdout."""
    _write(data)


def print_json(record: Mapping[str, object]) -> None:
    """One JSON object on one line of stdout, in ASCII."""
    _write(json.dumps(record).replace("\x7f", "\\u007f").encode("ascii") + b"\n")


def log(line: str) -> None:
    """One remark on stderr, escaped; nobody has to read it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(escape(line) + "\n")
        sys.stderr.flush()


def rate(done: int, seconds: float, unit: str = "it") -> str:
    """A speed, the right way up: "3.2 it/s" or "1.7 s/it"."""
    if not done or seconds <= 0:
        return ""
    speed = done / seconds
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"


class Bar:
    """A line that shows progress; this one, for where there is no terminal, shows nothing."""

    visible = False
    rows = 0  # that something above the bar takes
    gone = ""  # what takes it away

    def advance(self, label: str, done: int, total: int, remark: str, subject: str = "") -> None:
        """Show how far it is, and with what: as much of the `subject` as there is room for."""

    def paused(self) -> AbstractContextManager[None]:
        """While another line is written: the bar and what is above it are out of its way."""
        self.clear_drawing()
        return nullcontext()

    def draw_above(self, text: str, rows: int, gone: str = "") -> None:
        """Write a text of so many rows above the bar, in place of the last one.

        `gone` is what takes it away beside the clearing of its rows.
        """
        before = ""
        if self.rows:
            before = f"\x1b[{self.rows}A" + ("" if self.rows == rows else f"{self.gone}\x1b[J")
        _to_terminal(before + text)
        self.rows, self.gone = rows, gone

    def leave_drawing(self) -> None:
        """Let what is above the bar stay where it is."""
        self.rows, self.gone = 0, ""

    def clear_drawing(self) -> None:
        """Take away what is above the bar."""
        if self.rows:
            _to_terminal(f"\x1b[{self.rows}A{self.gone}\x1b[J")
        self.leave_drawing()


class TerminalBar(Bar):
    """Label, subject, bar, remark and remaining time on stderr, gone when it ends."""

    visible = True

    def __init__(self, bar: "Progress", label: str) -> None:
        self.bar, self.task = bar, bar.add_task(label, total=None, remark="")
        self.room = bar.console.width * 2 // 5  # cells of the terminal's line

    def advance(self, label: str, done: int, total: int, remark: str, subject: str = "") -> None:
        """Show how far it is, and with what: as much of the `subject` as there is room for."""
        words = f"{label}: {truncate(subject, self.room)}" if subject else label
        self.bar.update(self.task, description=words, completed=done, total=total, remark=remark)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While another line is written: the bar and what is above it are out of its way."""
        self.bar.stop()
        try:
            self.clear_drawing()
            yield
        finally:
            self.bar.start()

    def draw_above(self, text: str, rows: int, gone: str = "") -> None:
        """Write a text of so many rows above the bar, in place of the last one."""
        self.bar.stop()
        try:
            super().draw_above(text, rows, gone)
        finally:
            self.bar.start()


def truncate(text: str, cells: int) -> str:
    """A text from outside, escaped, in so many of a terminal's cells."""
    from rich.cells import cell_len, set_cell_size

    safe = escape(text[: cells + 1])
    if len(text) <= cells and cell_len(safe) <= cells:
        return safe
    return set_cell_size(safe, cells - 1).rstrip() + "…"


@contextmanager
def progress(on: bool, label: str) -> Iterator[Bar]:
    """A bar on stderr if it is `on` and that is a terminal."""
    if not on or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[remark]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    # Room for the "^C" that a terminal writes behind the bar: on a line of its own it would stay.
    width = max(shutil.get_terminal_size().columns - 3, 20)
    console = Console(stderr=True, markup=False, highlight=False, width=width)
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        yield TerminalBar(bar, label)


def _to_terminal(text: str) -> None:
    """What a terminal draws, on stderr; nobody has to see it."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _write(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)  # or the interpreter's last flush fails again
        os.close(nothing)
        if isinstance(error, BrokenPipeError):
            raise BrokenStdout from error
        reason = (error.strerror or str(error)).lower()
        raise BadOutput(f"cannot write to standard output: {reason}") from error
