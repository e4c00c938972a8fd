"""Ctrl-C and SIGTERM: one lets the current pictures finish, the second stops, the third exits."""

import os
import signal
from contextlib import suppress
from types import FrameType

STOPPED = "Stopped; pictures that were finished are kept."


class Stopped(BaseException):
    """Raised to stop a run; `code` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class StopSignal:
    """Handler of SIGINT and SIGTERM. With nothing to finish, the first signal stops at once."""

    is_daemon = False  # True: the process outlives its runs, and no number of signals ends it

    def __init__(self) -> None:
        self.signals = 0
        self.number = 0
        self.finishing = (
            False  # True: the run checks `stop_requested` and finishes its pictures first
        )
        self.raised = False

    @property
    def stop_requested(self) -> bool:
        """Whether to stop once the current pictures are finished."""
        return self.signals > 0

    def listen(self) -> None:
        """Install the handler, and forget earlier signals."""
        self.__init__()  # type: ignore[misc]
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not in the main thread, which alone may install one
                signal.signal(number, self.take)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. During the clean-up one more is ignored, the next exits."""
        self.signals, self.number = self.signals + 1, number
        if self.signals > 2 and not self.is_daemon:
            os._exit(128 + number)
        if self.raised or (self.finishing and self.signals == 1):
            return
        self.raised = True
        raise Stopped(number)

    def force_next(self) -> None:
        """Let the next signal stop the run at once, as if it were the second.

        For a thread that sends a signal: two in a row may arrive as one.
        """
        self.signals = max(self.signals, 1)

    def ignore(self) -> None:
        """Ignore signals from now on: the run is over."""
        self.raised = True

    def finished(self) -> None:
        """Note that the current pictures are written. Stopped, if a signal asked for that."""
        self.finishing = False
        if self.signals:
            self.raised = True
            raise Stopped(self.number)


STOP = StopSignal()
