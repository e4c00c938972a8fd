"""Worker process of --keep-alive: holds a model in memory and runs one command line at a time.

CUDA and OpenMP do not survive a fork, so jobs run in this very process, with the caller's streams,
folder and environment in place of its own. A thread per connection answers other callers meanwhile
that the worker is busy.
"""

import gc
import io
import os
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

from txt2img.cli.terminal.console import CLOSED, open_missing
from txt2img.cli.terminal.signals import STOP, Stopped
from txt2img.cli.worker import protocol
from txt2img.system import files, resources
from txt2img.system.version import __version__

CHECK_SECONDS = 5.0  # between checks of the source files
RECEIVE_SECONDS = 30.0  # for a client to send its request
GRACE_SECONDS = 30.0  # for a job to stop after its client died, before the worker exits


@dataclass(frozen=True)
class Job:
    """A command line, with the streams, folder and environment of its client."""

    connection: socket.socket
    arguments: list[str]
    model: str  # as the client names it, for `worker status`
    idle: int  # seconds until the worker ends if no other job comes
    umask: int
    environment: dict[str, str]
    files: list[int]  # standard input, output, error, current folder
    closed: list[int]  # those of the first three that the client had closed


def receive_job(connection: socket.socket) -> Job:
    """Receive a job. OSError, EOFError, ValueError."""
    message, files = protocol.receive(connection, 4)
    try:
        arguments, environment = message["arguments"], message["variables"]
        closed = message["closed"]
        if not (isinstance(arguments, list) and isinstance(environment, dict)):
            raise ValueError("not a job")
        if not isinstance(closed, list):
            raise ValueError("not a job")
        idle, umask = int(str(message["idle"])), int(str(message["umask"]))
        connection.settimeout(None)
        model = str(message["model"])
        return Job(connection, arguments, model, idle, umask, environment, files, closed)
    except (KeyError, ValueError) as error:
        for file in files:
            os.close(file)
        raise ValueError("not a job") from error


class Worker:
    """Accepts connections and runs jobs."""

    def __init__(self, server: socket.socket, idle: int) -> None:
        self.server, self.idle = server, idle
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.lock = threading.Lock()  # guards `busy` and `ending`
        self.busy = self.ending = False
        self.stop_requested = False  # end as soon as it is not busy
        self.waiting: list[socket.socket] = []  # clients waiting for the end, which closes these
        self.done, self.model = 0, ""
        self.idle_since = time.monotonic()

    def accept_loop(self) -> None:
        """Answer each client in a thread of its own, so that none can block another."""
        with suppress(OSError):  # the socket is closed, or too many files are open
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self.handle, args=(connection,), daemon=True).start()
        self.stop()

    def handle(self, connection: socket.socket) -> None:
        """Answer a client; other users and invalid messages get no answer."""
        keep = False
        try:
            connection.settimeout(RECEIVE_SECONDS)
            protocol.check_peer(connection)
            action = protocol.receive(connection)[0].get("do")
            if action == "run":
                keep = self.reserve(connection)
            elif action in ("status", "stop"):
                protocol.send(connection, self.state())
                if action == "stop":
                    keep = True
                    self.waiting.append(connection)
                    self.stop()
        except (OSError, EOFError, ValueError, protocol.WrongOwner):
            pass
        finally:
            if not keep:
                connection.close()

    def reserve(self, connection: socket.socket) -> bool:
        """Take a client's job if the worker is free. OSError, EOFError, ValueError."""
        with self.lock:
            ending = not self.busy and (self.ending or self.stop_requested)
            free = not self.busy and not ending
            self.busy = self.busy or free
        try:
            protocol.send(connection, {"go": free, "ending": ending})
            if free:
                self.jobs.put(receive_job(connection))
        except BaseException:
            if free:
                self.release()
            raise
        return free

    def release(self) -> None:
        with self.lock:
            self.busy, self.idle_since = False, time.monotonic()

    def stop(self) -> None:
        """End after the current job."""
        self.stop_requested = True
        self.jobs.put(None)  # wakes serve()

    def state(self) -> dict[str, object]:
        """The record of `worker status`."""
        left = max(0, round(self.idle - (time.monotonic() - self.idle_since)))
        return {
            "pid": os.getpid(),
            "version": __version__,
            "model": self.model,
            "busy": self.busy,
            "calls": self.done,
            "idle_seconds_left": None if self.busy else left,
        }

    def serve(self) -> None:
        """Run jobs until stopped, idle for too long, or the program's files have changed."""
        source = protocol.code_fingerprint()
        while not self._is_over(source):
            left = self.idle - (time.monotonic() - self.idle_since)
            with suppress(queue.Empty):
                if job := self.jobs.get(timeout=min(max(left, 0.01), CHECK_SECONDS)):
                    self._run(job)

    def _is_over(self, source: str) -> bool:
        """Whether the worker ends now; from then on it takes no job."""
        with self.lock:
            if not self.busy:
                idle = time.monotonic() - self.idle_since >= self.idle
                self.ending = self.stop_requested or idle or code_changed(source)
            return self.ending

    def _run(self, job: Job) -> None:
        self.idle, self.model = job.idle, job.model
        with job.connection:
            code = run_as_caller(job)
            self.done += 1
            self.release()  # first, for the client may send another job at once
            with suppress(OSError):
                protocol.send(job.connection, {"code": code})
        gc.collect()  # while no client waits
        resources.trim_heap()


def code_changed(source: str) -> bool:
    """Whether the program's files differ from those that this process has loaded."""
    try:
        return protocol.code_fingerprint() != source
    except OSError:
        return True


class Streams:
    """Context in which the standard streams are new ones on the descriptors 0 … 2.

    `on_use` is called before standard input is read and before standard output is written.
    `closed` are the descriptors that the caller had closed.
    """

    def __init__(self, on_use: Callable[[], None], closed: Collection[int] = ()) -> None:
        self.on_use, self.closed = on_use, set(closed)

    def __enter__(self) -> None:
        """Replace the streams, keeping their encodings."""
        self._swap()
        self.own = (sys.stdin, sys.stdout, sys.stderr)
        stdin, stdout, stderr = self.own
        sys.stdin = _text(io.BufferedReader(_ReportedFile(0, "r", self.on_use)), stdin)
        stdout_file: io.RawIOBase = _ReportedFile(1, "w", self.on_use)
        sys.stdout = _text(io.BufferedWriter(stdout_file), stdout)
        sys.stderr = _text(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), stderr)

    def __exit__(self, *error: object) -> None:
        """Flush the streams and put the former ones back."""
        self._swap()
        replacements = (sys.stdin, sys.stdout, sys.stderr)
        sys.stdin, sys.stdout, sys.stderr = self.own
        for stream in replacements:
            with suppress(OSError, ValueError):
                stream.close()

    def _swap(self) -> None:
        """Exchange this process's CLOSED for the caller's, or back."""
        swapped = set(CLOSED)
        CLOSED.clear()
        CLOSED.update(self.closed)
        self.closed = swapped


class _ReportedFile(io.FileIO):
    """A descriptor that stays open and reports its use."""

    def __init__(self, number: int, mode: str, on_use: Callable[[], None]) -> None:
        super().__init__(number, mode, closefd=False)
        self.on_use = on_use

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        """Read a part; called by the buffered reader."""
        self.on_use()
        return super().readinto(buffer)

    def readall(self) -> bytes:
        """Read everything; called by the buffered reader."""
        self.on_use()
        return super().readall()

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        """Write; called by the buffered writer."""
        self.on_use()
        return super().write(data)


def _text(buffer: io.BufferedReader | io.BufferedWriter, like: TextIO) -> TextIO:
    """A line-buffered text stream with the encoding of another."""
    return io.TextIOWrapper(buffer, like.encoding, like.errors, line_buffering=True)


def run_as_caller(job: Job) -> int:
    """Run a job as if in the client's process. Returns the exit code; restores this process."""
    from txt2img.cli import app

    environment, mask = dict(os.environ), os.umask(job.umask)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    forwarder, code = SignalForwarder(job.connection), 1
    try:
        for number, file in enumerate(job.files[:3]):
            os.dup2(file, number)
        os.fchdir(job.files[3])
        _set_environment(job.environment)
        with Streams(forwarder.touched, job.closed), warnings.catch_warnings():
            STOP.listen()
            forwarder.start()
            code = app.run(job.arguments)
            STOP.ignore()
    except Stopped as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001 - a failing job must not end the worker
        code = 1
    finally:
        STOP.ignore()
        forwarder.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        detach()
        _set_environment(environment)
        os.umask(mask)
        for file in job.files:
            os.close(file)
    return code


class SignalForwarder(threading.Thread):
    """Forwards the client's signals to its job, and stops the job if the client dies."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self.connection, self.lock, self.over = connection, threading.Lock(), threading.Event()
        self.has_touched = False

    def run(self) -> None:
        """Send a signal for each byte received, and SIGTERM at the end of the stream."""
        with suppress(OSError):
            while received := self.connection.recv(1):
                if received[0] in (signal.SIGINT, signal.SIGTERM):
                    self._send(received[0])
        if self.over.is_set():
            return
        STOP.force_next()
        self._send(signal.SIGTERM)
        if not self.over.wait(GRACE_SECONDS):
            os._exit(1)  # the job hangs, and holds the dead client's files

    def touched(self) -> None:
        """Tell the client, once, that its streams are in use: it must not run the line itself."""
        if not self.has_touched:
            self.has_touched = True
            with suppress(OSError):
                protocol.send(self.connection, {"touched": True})

    def _send(self, number: int) -> None:
        with self.lock:
            if not self.over.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, number)

    def end(self) -> None:
        """Ignore signals from now on: the job is over."""
        with self.lock:
            self.over.set()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)
        if self.is_alive():
            self.join()


def _set_environment(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def detach() -> None:
    """Release a client's streams and folder."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)


def main() -> None:
    """Serve at the socket argv[1] until idle for argv[2] seconds, unless another worker does."""
    path, idle = Path(sys.argv[1]), int(sys.argv[2])
    open_missing()
    os.umask(0o077)
    protocol.check_private(path.parent)
    held = files.claim(path.with_suffix(".lock"))  # the lock ends with its process
    if held is None:
        return
    from txt2img.weights import model_cache

    model_cache.MODEL_CACHE.enabled = STOP.is_daemon = True
    worker = Worker(protocol.listen(path), idle)

    def end(number: int, frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, end)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=worker.accept_loop, daemon=True).start()
    code = 1
    try:
        worker.serve()
        code = 0
    finally:
        path.unlink(missing_ok=True)
        files.release(path.with_suffix(".lock"), held)
        os._exit(code)  # nothing is left to write, and no thread is waited for


if __name__ == "__main__":
    main()
