"""The bar is for terminals, and never in the way of another line."""

import io
import re
import sys

import pytest

from txt2img.cli.terminal.console import progress, rate, truncate
from txt2img.cli.terminal.results import ProgressMeter
from txt2img.images.resume import Item
from txt2img.pipeline.batch import Started, Step
from txt2img.request.request import Request


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_label_remark_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(True, "loading") as bar:
        assert bar.visible
        bar.advance("drawing", 5, 10, "5/10 [red] 3.2 it/s")
        with bar.paused():
            sys.stderr.write("a line\n")
    shown = sys.stderr.getvalue()
    assert "drawing" in shown and "5/10 [red] 3.2 it/s" in shown
    before = shown[: shown.index("a line")]
    assert before.endswith("\x1b[2K")  # the bar's line is empty when the other is written


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def drawn() -> str:
        monkeypatch.setattr(sys, "stderr", Terminal())
        with progress(True, "loading") as bar:
            bar.advance("drawing", 5, 10, "5/10")
        return sys.stderr.getvalue()

    coloured = re.compile(r"\x1b\[(?:[\d;]*;)?[349]\d[\d;]*m")
    assert coloured.search(drawn())
    monkeypatch.setenv(variable, value)
    plain = drawn()
    assert not coloured.search(plain)
    assert ("5/10" in plain) is (variable == "NO_COLOR")  # a dumb terminal has no bar at all


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("red apple", "red apple"),
        ("a very long prompt of words", "a very lo…"),
        ("苹果苹果苹果", "苹果苹果…"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("\n" * 1_000_000, "\\n\\n\\n\\n\\…"),
        ("a  b  c  d  e", "a  b  c…"),
    ],
)
def test_a_subject_is_safe_and_fits(text: str, shown: str) -> None:
    assert truncate(text, 10) == shown


def test_a_batch_shows_what_is_done_and_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", Terminal())
    item = Item(4, Request("red apple\x1b]0;x\x07, and [bold]more[/] of a long prompt"), "x", 1, "")
    with progress(True, "loading") as bar:
        meter = ProgressMeter(bar, 40, 3, 800)
        meter.begin(Started((item,)))
        meter.show(Step(4, 4, 1, 20))
    line = sys.stderr.getvalue()
    assert "3 of 40 done: red apple\\x1b]0;x\\x07, and" in line and "1/20" in line
    assert "\x1b]" not in line


def test_no_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(True, "loading") as bar:
        bar.advance("drawing", 5, 10, "x")
        with bar.paused():
            pass
    assert sys.stderr.getvalue() == ""
    assert not bar.visible


def test_a_quiet_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(False, "loading") as bar:
        bar.advance("drawing", 5, 10, "x")
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("done", "seconds", "text"),
    [(32, 10.0, "3.2 it/s"), (1, 1.7, "1.7 s/it"), (0, 1.0, ""), (1, 0.0, "")],
)
def test_a_rate_is_the_right_way_up(done: int, seconds: float, text: str) -> None:
    assert rate(done, seconds) == text
