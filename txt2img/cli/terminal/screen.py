"""Which pictures a terminal can show, and where: above the bar, the next in place of the last."""

import os
import secrets
import shutil
import struct
import sys
import time
from collections.abc import Mapping

from PIL import Image

from txt2img.cli.options.preview import KINDS
from txt2img.cli.terminal import graphics
from txt2img.cli.terminal.console import Bar
from txt2img.cli.terminal.graphics import Cells

OVERRULE = "TXT2IMG_SHOW"  # the environment's word for what auto would find
SECONDS = 0.1  # between two pictures, at least
LARGEST: Cells = (80, 32)
LEFT = 4  # rows for the bar, the path and what the shell says
CELL = (8, 16)  # pixels, where a terminal does not say
KITTY = ("kitty", "ghostty")
ITERM = ("iTerm.app", "WezTerm", "mintty", "rio")
SIXEL = ("foot", "mlterm", "contour", "yaft", "sixel")


def detect_protocol(environ: Mapping[str, str]) -> str:
    """The way that the terminal shows pictures, told by the environment; "off" if by none."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get(OVERRULE) in KINDS[1:]:
        return environ[OVERRULE]
    if term in ("", "dumb", "unknown"):
        return "off"
    if not multiplexed(environ):
        if "KITTY_WINDOW_ID" in environ or "KONSOLE_VERSION" in environ or _in(KITTY, term):
            return "kitty"
        if program == "ghostty":
            return "kitty"
        if program in ITERM or environ.get("LC_TERMINAL") == "iTerm2":
            return "iterm"
        if _in(SIXEL, term):
            return "sixel"
    return "off" if environ.get("NO_COLOR") else "blocks"


def multiplexed(environ: Mapping[str, str]) -> bool:
    """Whether tmux or screen stands between, which keep pictures from the terminal."""
    return "TMUX" in environ or _in(("tmux", "screen"), environ.get("TERM", ""))


def truecolor(environ: Mapping[str, str]) -> bool:
    """Whether the terminal says that it has 24-bit colours; tmux makes others of them itself."""
    direct = environ.get("TERM", "").endswith("-direct") or "TMUX" in environ
    return direct or environ.get("COLORTERM") in ("truecolor", "24bit")


class Screen:
    """The terminal's place for pictures; none where it has none, or shows none."""

    def __init__(self, bar: Bar, kind: str) -> None:
        self.bar = bar
        terminal = sys.stderr.isatty() and sys.stdout.isatty()
        self.kind = (detect_protocol(os.environ) if kind == "auto" else kind) if terminal else "off"
        self.number = secrets.randbits(24) + 1  # kitty's: no other program's, no other run's
        self.last = -SECONDS

    @property
    def on(self) -> bool:
        """Whether anything is shown at all."""
        return self.kind != "off"

    @property
    def ready(self) -> bool:
        """Whether the last picture stands long enough for the next one."""
        return self.on and time.monotonic() - self.last >= SECONDS

    def show(self, picture: Image.Image) -> None:
        """Draw a picture in place of the last one, unless that is to stay."""
        cell = cell_size()
        wide, high = shutil.get_terminal_size()
        room = min(wide - 1, LARGEST[0]), min(high - LEFT, LARGEST[1])
        if not self.on or min(room) < 1:
            return
        cells = graphics.fit(picture.size, room, cell)
        gone = graphics.kitty_gone(self.number) if self.kind == "kitty" else ""
        self.bar.draw_above(self._text(picture, cells, cell), cells[1], gone)
        self.last = time.monotonic()

    def leave(self) -> None:
        """Let the picture stay; the next one comes below."""
        self.bar.leave_drawing()
        self.number += 1

    def _text(self, picture: Image.Image, cells: Cells, cell: tuple[int, int]) -> str:
        if self.kind == "blocks":
            return graphics.blocks(picture, cells, truecolor(os.environ))
        size = cells[0] * cell[0], cells[1] * cell[1]
        scaled = picture.resize(size, Image.Resampling.BICUBIC)
        if self.kind == "kitty":
            return graphics.kitty(scaled, cells, self.number)
        return (graphics.iterm if self.kind == "iterm" else graphics.sixel)(scaled, cells)


def cell_size() -> tuple[int, int]:
    """How many pixels a cell of the terminal is wide and high."""
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
