"""The warm worker: a process that keeps a model and draws for one call after another.

CUDA and OpenMP do not survive a fork, so calls are carried out in this very process, one at a
time, with the caller's open files, folder and variables in the place of its own. Who calls in the
meantime is told at once, by a thread of its own, that the worker is busy.
"""

import gc
import os
import queue
import signal
import socket
import sys
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from txt2img.cli.terminal.signals import STOP, Stopped
from txt2img.cli.terminal.streams import Streams, open_missing
from txt2img.cli.worker import protocol
from txt2img.system import locks, resources
from txt2img.system.version import __version__

TICK = 5.0  # seconds between looks at the source files
HEAR_SECONDS = 30.0  # for a caller to say what it wants
GRACE_SECONDS = 30.0  # for a job to stop when its caller is gone, before the worker ends with it


@dataclass(frozen=True)
class Job:
    """One command line, with all that makes its output the caller's."""

    connection: socket.socket
    arguments: list[str]
    model: str  # as the caller names it, for `worker status`
    idle: int  # seconds that the worker is to stay after it
    umask: int
    variables: dict[str, str]
    files: list[int]  # standard input, output, error, current folder
    closed: list[int]  # of the first three, which are /dev/null then


def ordered(connection: socket.socket) -> Job:
    """The job that a caller sends. OSError, EOFError, ValueError."""
    order, files = protocol.receive(connection, 4)
    try:
        words, variables, closed = order["arguments"], order["variables"], order["closed"]
        if not (isinstance(words, list) and isinstance(variables, dict)):
            raise ValueError("no command line")
        if not isinstance(closed, list):
            raise ValueError("no streams")
        idle, umask = int(str(order["idle"])), int(str(order["umask"]))
        connection.settimeout(None)
        model = str(order["model"])
        return Job(connection, words, model, idle, umask, variables, files, closed)
    except (KeyError, ValueError) as error:
        for file in files:
            os.close(file)
        raise ValueError("no order") from error


class Worker:
    """What is listened to, and what is being done."""

    def __init__(self, server: socket.socket, idle: int) -> None:
        self.server, self.idle = server, idle
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.lock = threading.Lock()  # of the two that follow
        self.busy = self.ending = False
        self.stopping = False  # asked to end as soon as it is not busy
        self.waiting: list[socket.socket] = []  # who asked for the end, which closes these
        self.done, self.model = 0, ""
        self.since = time.monotonic()  # idle since then

    def hear(self) -> None:
        """Answer who calls, each in a thread: no caller can keep another waiting."""
        with suppress(OSError):  # the socket is closed, or no more files can be opened
            while True:
                connection, _ = self.server.accept()
                threading.Thread(target=self._meet, args=(connection,), daemon=True).start()
        self.stop()

    def _meet(self, connection: socket.socket) -> None:
        """Answer one caller; who is not this user, or talks nonsense, gets no answer."""
        keep = False
        try:
            connection.settimeout(HEAR_SECONDS)
            protocol.check_peer(connection)
            what = protocol.receive(connection)[0].get("do")
            if what == "run":
                keep = self._take(connection)
            elif what in ("status", "stop"):
                protocol.send(connection, self.state())
                if what == "stop":
                    keep = True
                    self.waiting.append(connection)
                    self.stop()
        except (OSError, EOFError, ValueError, protocol.NotOurs):
            pass
        finally:
            if not keep:
                connection.close()

    def _take(self, connection: socket.socket) -> bool:
        """Whether the caller's job is taken. OSError, EOFError, ValueError: it never came."""
        with self.lock:
            ending = not self.busy and (self.ending or self.stopping)
            free = not self.busy and not ending
            self.busy = self.busy or free
        try:
            protocol.send(connection, {"go": free, "ending": ending})
            if free:
                self.jobs.put(ordered(connection))
        except BaseException:
            if free:
                self._be_free()
            raise
        return free

    def _be_free(self) -> None:
        with self.lock:
            self.busy, self.since = False, time.monotonic()

    def stop(self) -> None:
        """End as soon as what is being done is done."""
        self.stopping = True
        self.jobs.put(None)  # so that who waits for a job looks

    def state(self) -> dict[str, object]:
        """What `worker status` says."""
        left = max(0, round(self.idle - (time.monotonic() - self.since)))
        return {
            "pid": os.getpid(),
            "version": __version__,
            "model": self.model,
            "busy": self.busy,
            "calls": self.done,
            "idle_seconds_left": None if self.busy else left,
        }

    def serve(self) -> None:
        """Carry out what comes, until told to stop, idle for too long or out of date."""
        source = protocol.state_of_source()
        while not self._over(source):
            left = self.idle - (time.monotonic() - self.since)
            with suppress(queue.Empty):
                if job := self.jobs.get(timeout=min(max(left, 0.01), TICK)):
                    self._carry_out(job)

    def _over(self, source: str) -> bool:
        """Whether there is nothing more to do; from then on no job is taken."""
        with self.lock:
            if not self.busy:
                idle = time.monotonic() - self.since >= self.idle
                self.ending = self.stopping or idle or outdated(source)
            return self.ending

    def _carry_out(self, job: Job) -> None:
        self.idle, self.model = job.idle, job.model
        with job.connection:
            code = in_place_of(job)
            self.done += 1
            self._be_free()  # first: who is told that it is done may call again at once
            with suppress(OSError):
                protocol.send(job.connection, {"code": code})
        gc.collect()  # while nobody waits
        resources.trim_heap()


def outdated(source: str) -> bool:
    """Whether the program's files are not what they were when this process read them."""
    try:
        return protocol.state_of_source() != source
    except OSError:
        return True


def in_place_of(job: Job) -> int:
    """Run a caller's line as if in its process; gives the exit code. All is put back after."""
    from txt2img.cli import app

    own, mask = dict(os.environ), os.umask(job.umask)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    watch, code = Watch(job.connection), 1
    try:
        for number, file in enumerate(job.files[:3]):
            os.dup2(file, number)
        os.fchdir(job.files[3])
        _set_variables(job.variables)
        with Streams(watch.touched, job.closed), warnings.catch_warnings():  # all is warned of anew
            STOP.listen()
            watch.start()
            code = app.run(job.arguments)
            STOP.ignore()
    except Stopped as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001 - a call that fails must not take the next one with it
        code = 1
    finally:
        STOP.ignore()
        watch.end()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _be_nobody()
        _set_variables(own)
        os.umask(mask)
        for file in job.files:
            os.close(file)
    return code


class Watch(threading.Thread):
    """Hears the caller's signals while its job runs, and stops the job when the caller is gone."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self.connection, self.lock, self.over = connection, threading.Lock(), threading.Event()
        self.told = False

    def run(self) -> None:
        """Turn bytes into signals."""
        with suppress(OSError):
            while heard := self.connection.recv(1):
                if heard[0] in (signal.SIGINT, signal.SIGTERM):
                    self._pass_on(heard[0])
        if self.over.is_set():
            return
        STOP.force_next()
        self._pass_on(signal.SIGTERM)
        if not self.over.wait(GRACE_SECONDS):
            os._exit(1)  # it hangs, and holds the files of who is gone

    def touched(self) -> None:
        """Tell the caller, once, that from now on its line cannot simply be run again."""
        if not self.told:
            self.told = True
            with suppress(OSError):
                protocol.send(self.connection, {"touched": True})

    def _pass_on(self, number: int) -> None:
        with self.lock:
            if not self.over.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, number)

    def end(self) -> None:
        """Hear no more: signals from now on are nobody's."""
        with self.lock:
            self.over.set()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)
        if self.is_alive():
            self.join()


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
    """Serve at the socket argv[1] until idle for argv[2] seconds; nothing if another does."""
    path, idle = Path(sys.argv[1]), int(sys.argv[2])
    open_missing()
    os.umask(0o077)
    protocol.check_private(path.parent)
    held = locks.claim(path.with_suffix(".lock"))  # which ends with its process
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
    threading.Thread(target=worker.hear, daemon=True).start()
    code = 1
    try:
        worker.serve()
        code = 0
    finally:
        path.unlink(missing_ok=True)
        locks.release(path.with_suffix(".lock"), held)
        os._exit(code)  # nothing is left to be written, and no library's threads are waited for


if __name__ == "__main__":
    main()
