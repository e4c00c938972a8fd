"""Inline pictures: detect the terminal's protocol, and draw above the bar, each over the last."""

import os
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from txt2img.cli.terminal.console import Bar

if TYPE_CHECKING:  # imported when a picture is shown: --help needs PROTOCOLS alone
    from PIL import Image

    from txt2img.cli.terminal.graphics import Cells

PROTOCOLS = ("auto", "kitty", "iterm", "sixel", "blocks", "off")
VARIABLE = "TXT2IMG_PREVIEW"  # in the environment: overrides what auto detects
SECONDS = 0.1  # between two pictures, at least
LARGEST = (80, 32)  # columns, rows
LEFT = 4  # rows for the bar, the path and the shell's prompt
CELL = (8, 16)  # pixels, where the terminal does not report it
KITTY = ("kitty", "ghostty")
ITERM = ("iTerm.app", "WezTerm", "mintty", "rio")
SIXEL = ("foot", "mlterm", "contour", "yaft", "sixel")


def detect_protocol(environ: Mapping[str, str]) -> str:
    """Detect how the terminal can show pictures, from the environment; "off" if it cannot."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get(VARIABLE) in PROTOCOLS[1:]:
        return environ[VARIABLE]
    if term in ("", "dumb", "unknown"):
        return "off"
    if "TMUX" not in environ and not _in(("tmux", "screen"), term):  # which pass no pictures on
        if "KITTY_WINDOW_ID" in environ or "KONSOLE_VERSION" in environ or _in(KITTY, term):
            return "kitty"
        if program == "ghostty":
            return "kitty"
        if program in ITERM or environ.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
        if _in(SIXEL, term):
            return "sixel"
    return "off" if environ.get("NO_COLOR") else "blocks"


def truecolor(environ: Mapping[str, str]) -> bool:
    """Whether to send 24-bit colours; tmux converts them if the terminal has fewer."""
    direct = environ.get("TERM", "").endswith("-direct") or "TMUX" in environ
    return direct or environ.get("COLORTERM") in ("truecolor", "24bit")


class Screen:
    """The place for pictures above the bar, if the terminal shows any."""

    def __init__(self, bar: Bar, kind: str) -> None:
        self.bar = bar
        terminal = sys.stderr.isatty() and sys.stdout.isatty()
        self.kind = (detect_protocol(os.environ) if kind == "auto" else kind) if terminal else "off"
        self.number = secrets.randbits(24) + 1  # kitty's picture id: not another program's or run's
        self.last = -SECONDS

    @property
    def on(self) -> bool:
        """Whether pictures are shown at all."""
        return self.kind != "off"

    @property
    def ready(self) -> bool:
        """Whether the last picture was shown long enough for the next one."""
        return self.on and time.monotonic() - self.last >= SECONDS

    def show(self, picture: "Image.Image") -> None:
        """Draw a picture over the last one, unless that was left in place."""
        from txt2img.cli.terminal import graphics

        cell = cell_size()
        wide, high = shutil.get_terminal_size()
        limits = min(wide - 1, LARGEST[0]), min(high - LEFT, LARGEST[1])
        if not self.on or min(limits) < 1:
            return
        cells = graphics.fit(picture.size, limits, cell)
        erase = graphics.erase_kitty(self.number) if self.kind == "kitty" else ""
        self.bar.draw_above(self._text(picture, cells, cell), cells[1], erase)
        self.last = time.monotonic()

    def leave(self) -> None:
        """Leave the picture in place; the next one goes below."""
        self.bar.leave_drawing()
        self.number += 1

    def _text(self, picture: "Image.Image", cells: "Cells", cell: tuple[int, int]) -> str:
        from txt2img.cli.terminal import graphics

        if self.kind == "blocks":
            return graphics.blocks(picture, cells, truecolor(os.environ))
        size = cells[0] * cell[0], cells[1] * cell[1]
        scaled = picture.resize(size, graphics.BICUBIC)
        if self.kind == "kitty":
            return graphics.kitty(scaled, cells, self.number)
        return (graphics.iterm if self.kind == "iterm" else graphics.sixel)(scaled, cells)


def cell_size() -> tuple[int, int]:
    """Width and height of a terminal's cell in pixels."""
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    except (ImportError, OSError, ValueError):
        return CELL
    rows, columns, width, height = struct.unpack("HHHH", answer)
    if not (rows and columns and width >= columns and height >= rows):
        return CELL
    return width // columns, height // rows


def _in(words: tuple[str, ...], text: str) -> bool:
    return any(word in text for word in words)
