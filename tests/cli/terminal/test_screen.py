"""Which terminals show pictures how, and that a picture is where the last one was."""

import io
import sys

import pytest
from PIL import Image

from txt2img.cli.terminal.console import Bar, progress
from txt2img.cli.terminal.screen import Screen, detect_protocol, truecolor

PICTURE = Image.new("RGB", (64, 64), (200, 100, 0))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard error, a terminal of 80x24 as standard output is; not for fixtures, whose streams
    the test's own capture replaces.
    """
    for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "NO_COLOR", "TXT2IMG_PREVIEW"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", Terminal())
    return stream


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "220401"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "mlterm"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux,1,0"}, "blocks"),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "off"),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, "kitty"),
        ({"TERM": "dumb"}, "off"),
        ({}, "off"),
        ({"TERM": "xterm-256color", "TXT2IMG_PREVIEW": "sixel"}, "sixel"),
        ({"TERM": "xterm-256color", "TXT2IMG_PREVIEW": "nonsense"}, "blocks"),
    ],
)
def test_the_environment_tells_the_way(environ: dict[str, str], kind: str) -> None:
    assert detect_protocol(environ) == kind


def test_colours_are_deep_where_the_terminal_says_so() -> None:
    assert truecolor({"TERM": "xterm-256color", "COLORTERM": "truecolor"})
    assert truecolor({"TERM": "xterm-direct"})
    assert truecolor({"TERM": "tmux-256color", "TMUX": "/tmp/tmux,1,0"})
    assert not truecolor({"TERM": "xterm-256color"})


def test_a_picture_takes_the_place_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    screen = Screen(Bar(), "auto")
    assert screen.kind == "blocks"
    screen.show(PICTURE)
    once = terminal.getvalue()
    assert once.count("\n") == 20 and "\x1b[20A" not in once
    screen.show(PICTURE)
    assert terminal.getvalue() == once + "\x1b[20A" + once


def test_a_picture_of_another_shape_leaves_nothing_of_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    screen = Screen(Bar(), "blocks")
    screen.show(PICTURE)
    before = len(terminal.getvalue())
    screen.show(PICTURE.resize((640, 64)))
    assert terminal.getvalue()[before:].startswith("\x1b[20A\x1b[J")


def test_a_picture_that_stays_is_not_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    bar = Bar()
    screen = Screen(bar, "kitty")
    screen.show(PICTURE)
    number = screen.number
    screen.leave()
    with bar.paused():
        sys.stderr.write("x.png\n")
    screen.show(PICTURE)
    after = terminal.getvalue().partition("x.png\n")[2]
    assert after.startswith("\n" * 20 + "\x1b[20A\x1b7\x1b_Ga=T")
    assert f"i={number + 1}," in after and f"i={number}," not in after


def test_a_line_takes_the_place_of_a_picture_that_does_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = on_terminal(monkeypatch)
    bar = Bar()
    screen = Screen(bar, "kitty")
    screen.show(PICTURE)
    before = len(terminal.getvalue())
    with bar.paused():
        sys.stderr.write("a line\n")
    gone = f"\x1b[20A\x1b_Ga=d,d=I,i={screen.number},q=2\x1b\\\x1b[J"
    assert terminal.getvalue()[before:] == gone + "a line\n"


def test_the_bar_is_below_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with progress(True, "loading") as bar:
        bar.advance("drawing", 1, 2, "")
        Screen(bar, "blocks").show(PICTURE)
    text = terminal.getvalue()
    above, below = text[: text.index("▀")], text[text.rindex("▀") :]
    assert above.rindex("\x1b[2K") > above.rindex("drawing")  # the bar is wiped away, and is
    assert "drawing" in below  # there again
    assert text.count("\x1b[0m\x1b[K\n") == 20


@pytest.mark.parametrize("kind", ["auto", "kitty"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_no_terminal_is_shown_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str, stream: str
) -> None:
    terminal = on_terminal(monkeypatch)
    other = io.StringIO()
    monkeypatch.setattr(sys, stream, other)
    screen = Screen(Bar(), kind)
    assert not screen.on and not screen.ready
    screen.show(PICTURE)
    assert terminal.getvalue() == other.getvalue() == ""


def test_a_terminal_without_room_is_shown_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    monkeypatch.setenv("LINES", "4")
    Screen(Bar(), "blocks").show(PICTURE)
    assert terminal.getvalue() == ""


def test_pictures_do_not_come_faster_than_they_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    screen = Screen(Bar(), "blocks")
    assert screen.ready
    screen.show(PICTURE)
    screen.last += 100
    assert not screen.ready
    screen.last -= 200
    assert screen.ready
