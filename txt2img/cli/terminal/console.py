"""Standard streams: results on stdout, everything else on stderr, progress only on a terminal."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from txt2img.errors import BadOutput
from txt2img.system.files import reason
from txt2img.system.text import escape

if TYPE_CHECKING:
    from rich.progress import Progress

CLOSED: set[int] = set()  # descriptors that were closed when the program, or a call, began


class BrokenStdout(Exception):
    """The reader of stdout has closed it."""


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


def print_line(line: str) -> None:
    """Print a line on stdout, escaped. BrokenStdout, BadOutput."""
    _write_line(escape(line, keep="\n"))


def print_row(*cells: object) -> None:
    """Print cells on stdout, separated by tabs and escaped."""
    _write_line("\t".join(escape(str(cell)) for cell in cells))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows: as a table with headers on a terminal, else each as its cells and tabs."""
    if not sys.stdout.isatty():
        for row in rows:
            print_row(*row)
        return
    cells = [[escape(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [headers, *cells] if cells else []:
        line = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        _write_line("  ".join(line).rstrip())


def print_path(path: str | os.PathLike[str]) -> None:
    """Print a path on stdout: escaped on a terminal, else in the file system's encoding."""
    if sys.stdout.isatty():
        print_line(os.fspath(path))
    else:
        print_bytes(os.fsencode(path) + b"\n")


def print_json(record: Mapping[str, object]) -> None:
    """Print a JSON object on one line of stdout, in ASCII."""
    print_bytes(json.dumps(record).replace("\x7f", "\\u007f").encode("ascii") + b"\n")


def log(line: str) -> None:
    """Print a line on stderr, escaped; a closed stderr is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(escape(line) + "\n")
        sys.stderr.flush()


def rate(done: int, seconds: float, unit: str = "it") -> str:
    """A speed as tqdm shows it: "3.2 it/s" or "1.7 s/it"."""
    if not done or seconds <= 0:
        return ""
    speed = done / seconds
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"


class Bar:
    """A progress bar that is not visible, for where there is no terminal."""

    visible = False
    rows = 0  # rows of the drawing above the bar
    erase = ""  # escape sequence that removes it, besides clearing its rows

    def advance(self, label: str, done: int, total: int, remark: str, subject: str = "") -> None:
        """Show progress and a remark, with as much of `subject` as fits."""

    def paused(self) -> AbstractContextManager[None]:
        """Remove the bar and the drawing above it while other lines are written."""
        self.clear_drawing()
        return nullcontext()

    def draw_above(self, text: str, rows: int, erase: str = "") -> None:
        """Draw a text of so many rows above the bar, in place of the last one.

        `erase` removes it, if clearing its rows is not enough.
        """
        before = ""
        if self.rows:
            before = f"\x1b[{self.rows}A" + ("" if self.rows == rows else f"{self.erase}\x1b[J")
        _to_terminal(before + text)
        self.rows, self.erase = rows, erase

    def leave_drawing(self) -> None:
        """Leave the drawing above the bar where it is."""
        self.rows, self.erase = 0, ""

    def clear_drawing(self) -> None:
        """Remove the drawing above the bar."""
        if self.rows:
            _to_terminal(f"\x1b[{self.rows}A{self.erase}\x1b[J")
        self.leave_drawing()


class TerminalBar(Bar):
    """Label, subject, bar, remark and remaining time on stderr; removed at the end."""

    visible = True

    def __init__(self, bar: "Progress", label: str) -> None:
        self.bar, self.task = bar, bar.add_task(label, total=None, remark="")
        self.subject_width = bar.console.width * 2 // 5  # cells

    def advance(self, label: str, done: int, total: int, remark: str, subject: str = "") -> None:
        """Show progress and a remark, with as much of `subject` as fits."""
        text = f"{label}: {truncate(subject, self.subject_width)}" if subject else label
        self.bar.update(self.task, description=text, completed=done, total=total, remark=remark)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the bar and the drawing above it while other lines are written."""
        self.bar.stop()
        try:
            self.clear_drawing()
            yield
        finally:
            self.bar.start()

    def draw_above(self, text: str, rows: int, erase: str = "") -> None:
        """Draw a text of so many rows above the bar, in place of the last one."""
        self.bar.stop()
        try:
            super().draw_above(text, rows, erase)
        finally:
            self.bar.start()


def truncate(text: str, cells: int) -> str:
    """Escape an untrusted text and shorten it to so many cells of a terminal."""
    from rich.cells import cell_len, set_cell_size

    safe = escape(text[: cells + 1])
    if len(text) <= cells and cell_len(safe) <= cells:
        return safe
    return set_cell_size(safe, cells - 1).rstrip() + "…"


@contextmanager
def progress(on: bool, label: str) -> Iterator[Bar]:
    """Show a bar on stderr if it is `on` and stderr is a terminal."""
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
    # Leave room for the "^C" that a terminal echoes behind the bar; on a new line it would stay.
    width = max(shutil.get_terminal_size().columns - 3, 20)
    console = Console(stderr=True, markup=False, highlight=False, width=width)
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        yield TerminalBar(bar, label)


def _to_terminal(text: str) -> None:
    """Write escape sequences to stderr; a closed stderr is no error."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _write_line(line: str) -> None:
    print_bytes(f"{line}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def print_bytes(data: bytes) -> None:
    """Write bytes to stdout. BrokenStdout, BadOutput."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)  # or the interpreter's last flush fails again
        os.close(nothing)
        if isinstance(error, BrokenPipeError):
            raise BrokenStdout from error
        raise BadOutput(f"cannot write to standard output: {reason(error)}") from error
