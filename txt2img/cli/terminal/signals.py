"""Ctrl-C and SIGTERM: one finishes the pictures at hand, the second stops, the third exits."""

import os
import signal
from contextlib import suppress
from types import FrameType

STOPPED = "Stopped; pictures that were finished are kept."


class Stopped(BaseException):
    """The user or the system asked for an end; `code` is the exit code."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.code = 128 + number


class StopSignal:
    """What the signals have asked for. Without anything to finish, the first stops at once."""

    is_daemon = False  # whether the process outlives its work, and so no number of signals ends it

    def __init__(self) -> None:
        self.signals = 0
        self.number = 0
        self.finishing = False  # whether the first signal is heeded by who looks at `asked`
        self.raised = False

    @property
    def asked(self) -> bool:
        """Whether an end was asked for and is put off until the pictures at hand are finished."""
        return self.signals > 0

    def listen(self) -> None:
        """Take the signals from now on, and forget those that were."""
        self.__init__()  # type: ignore[misc]
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(ValueError):  # not the main thread: somebody else's signals
                signal.signal(number, self.take)

    def take(self, number: int, frame: FrameType | None) -> None:
        """One signal. While all is being cleaned up one more is passed over, not two."""
        self.signals, self.number = self.signals + 1, number
        if self.signals > 2 and not self.is_daemon:
            os._exit(128 + number)
        if self.raised or (self.finishing and self.signals == 1):
            return
        self.raised = True
        raise Stopped(number)

    def force_next(self) -> None:
        """Let the next signal stop the work now, as if one was there before: nobody waits for it.

        For another thread, which sends it: two signals at once may be taken as one.
        """
        self.signals = max(self.signals, 1)

    def ignore(self) -> None:
        """Heed no signal from now on: the work is over."""
        self.raised = True

    def finished(self) -> None:
        """The pictures at hand are written: raises Stopped if that was waited for."""
        self.finishing = False
        if self.signals:
            self.raised = True
            raise Stopped(self.number)


STOP = StopSignal()
