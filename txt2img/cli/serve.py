"""The warm worker: a process that keeps a model and draws for one call after another.

CUDA and OpenMP do not survive a fork, so calls are carried out in this very process, one at a
time, with the caller's open files, folder and variables in the place of its own.
"""

import fcntl
import io
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from txt2img.cli import wire

TICK = 5.0  # seconds between looks at the source files and the clock
HEAR_SECONDS = 5.0  # for a caller to say what it wants


@dataclass(frozen=True)
class Job:
    """One command line, with all that makes its output the caller's."""

    connection: socket.socket
    arguments: list[str]
    variables: dict[str, str]
    idle: int
    files: list[int]  # standard input, output, error, current folder


class Worker:
    """What is listened to, and what is being done."""

    def __init__(self, server: socket.socket, path: Path, idle: int) -> None:
        self.server, self.path, self.idle = server, path, idle
        self.jobs: queue.Queue[Job | None] = queue.Queue()
        self.busy = threading.Lock()
        self.done = 0
        self.model = ""
        self.since = time.monotonic()  # idle since then

    def hear(self) -> None:
        """Answer who calls, for ever: take a job if there is none, else say so at once."""
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return  # the socket is closed: nobody can call any more
            try:
                connection.settimeout(HEAR_SECONDS)
                wire.check_peer(connection)
                self._answer(connection)
            except (OSError, EOFError, ValueError, KeyError, TypeError, wire.NotOurs):
                connection.close()

    def _answer(self, connection: socket.socket) -> None:
        message, files = wire.receive(connection, 4)
        if message["do"] == "run" and len(files) == 4 and self.busy.acquire(blocking=False):
            words, variables = message["arguments"], message["variables"]
            assert isinstance(words, list) and isinstance(variables, dict)
            wire.send(connection, {"go": True})
            connection.settimeout(None)
            self.jobs.put(Job(connection, words, variables, int(str(message["idle"])), files))
            return
        for file in files:
            os.close(file)
        wire.send(connection, {"go": False, **self.state()})
        connection.close()
        if message["do"] == "stop":
            self.jobs.put(None)

    def state(self) -> dict[str, object]:
        """What `worker status` says."""
        busy = self.busy.locked()
        left = max(0, round(self.idle - (time.monotonic() - self.since)))
        about = {"pid": os.getpid(), "model": self.model, "busy": busy, "calls": self.done}
        return about | {"idle_seconds_left": None if busy else left}

    def serve(self) -> None:
        """Carry out what comes, until told to stop, idle for too long or out of date."""
        source = wire.state_of_source()
        while True:
            left = self.idle - (time.monotonic() - self.since)
            try:
                job = self.jobs.get(timeout=max(0.0, min(left, TICK)))
            except queue.Empty:
                idle = time.monotonic() - self.since >= self.idle
                if (idle or source != wire.state_of_source()) and self.busy.acquire(blocking=False):
                    return
                continue
            if job is None:
                return
            self._carry_out(job)

    def _carry_out(self, job: Job) -> None:
        from txt2img.cli.warm import about

        self.idle = job.idle
        self.model = about(job.arguments)[0] or "default"
        with job.connection:
            code = in_place_of(job)
            self.done, self.since = self.done + 1, time.monotonic()
            self.busy.release()  # first: who is told that it is done may call again at once
            with suppress(OSError):
                wire.send(job.connection, {"code": code})


def in_place_of(job: Job) -> int:
    """Run a caller's line as if in its process; gives the exit code. All is put back after."""
    from txt2img.cli import app
    from txt2img.cli.signals import STOP, Stopped

    own = dict(os.environ)
    watch = Watch(job.connection)
    try:
        for number, file in enumerate(job.files[:3]):
            os.dup2(file, number)
        os.fchdir(job.files[3])
        _set_variables(job.variables)
        with Streams():
            STOP.listen()
            watch.start()
            return app.run(job.arguments)
    except Stopped as stop:
        return stop.code
    except BaseException:  # noqa: BLE001 - a call that fails must not take the next one with it
        return 1
    finally:
        watch.end()
        _be_nobody()
        _set_variables(own)
        for file in job.files:
            os.close(file)


class Watch(threading.Thread):
    """Hears the caller's signals while its job runs; two of them when the caller is gone."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self.connection, self.lock, self.over = connection, threading.Lock(), False

    def run(self) -> None:
        """Turn bytes into signals."""
        while not self.over:
            try:
                numbers = self.connection.recv(1)
            except OSError:
                return
            if not numbers:
                self._pass_on(signal.SIGTERM)
                time.sleep(0.05)  # so that the first is taken as one, and the second as another
                self._pass_on(signal.SIGTERM)
                return
            if numbers[0] in (signal.SIGINT, signal.SIGTERM):
                self._pass_on(numbers[0])

    def _pass_on(self, number: int) -> None:
        with self.lock:
            if not self.over:
                signal.pthread_kill(threading.main_thread().ident or 0, number)

    def end(self) -> None:
        """Hear no more: signals from now on are nobody's."""
        for _ in range(3):
            try:
                with self.lock:
                    self.over = True
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                break
            except BaseException:  # noqa: BLE001 - the last signal, come too late
                continue
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)


class Streams:
    """New standard streams on the descriptors 0 … 2, in the encodings of this process."""

    def __enter__(self) -> None:
        self.own = (sys.stdin, sys.stdout, sys.stderr)
        sys.stdin = _opened(0, "r", self.own[0])
        sys.stdout = _opened(1, "w", self.own[1])
        sys.stderr = _opened(2, "w", self.own[2])

    def __exit__(self, *error: object) -> None:
        made = (sys.stdin, sys.stdout, sys.stderr)
        sys.stdin, sys.stdout, sys.stderr = self.own
        for stream in made:
            with suppress(OSError, ValueError):
                stream.close()


def _opened(number: int, mode: str, like: TextIO) -> TextIO:
    """A text stream on a descriptor, which stays open, encoded like another."""
    file = io.FileIO(number, mode, closefd=False)
    raw = io.BufferedReader(file) if mode == "r" else io.BufferedWriter(file)
    return io.TextIOWrapper(raw, encoding=like.encoding, errors=like.errors)


def _set_variables(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _be_nobody() -> None:
    """Let go of a caller's files and folder."""
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.close(nothing)


def main() -> None:
    """Serve at the socket argv[1] until idle for argv[2] seconds."""
    path, idle = Path(sys.argv[1]), int(sys.argv[2])
    wire.check_private(path.parent)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # another is there already; the kernel frees the lock of one that is dead
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    worker = Worker(wire.listen(path), path, idle)
    threading.Thread(target=worker.hear, daemon=True).start()
    from txt2img.weights import kept

    kept.keep()
    worker.serve()
    path.unlink(missing_ok=True)
    os._exit(0)  # nothing is left to be written, and no library's threads are waited for


if __name__ == "__main__":
    main()
