"""The bar is for terminals, and never in the way of another line."""

import io
import sys

import pytest

from txt2img.cli.show import progress, rate


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
        with bar.aside():
            sys.stderr.write("a line\n")
    shown = sys.stderr.getvalue()
    assert "drawing" in shown and "5/10 [red] 3.2 it/s" in shown
    before = shown[: shown.index("a line")]
    assert before.endswith("\x1b[2K")  # the bar's line is empty when the other is written


def test_no_terminal_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(True, "loading") as bar:
        bar.advance("drawing", 5, 10, "x")
        with bar.aside():
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
