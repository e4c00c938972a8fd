"""The calling side of a warm worker: hand a command line over, or say that it cannot be."""

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from txt2img.cli.terminal.console import log
from txt2img.cli.terminal.signals import STOPPED, Stopped
from txt2img.cli.terminal.streams import CLOSED, open_missing
from txt2img.cli.worker import protocol

if TYPE_CHECKING:
    from subprocess import Popen

VARIABLE = "TXT2IMG_WARM"
# Commands that a worker is of no use to: they draw nothing, or load models of their own.
OTHERS = {"info", "verify", "train", "worker", "models", "decode"}
ALONE = {"--help", "--version", "--dry-run", "--no-warm"}
ALONE |= {"--install-completion", "--show-completion"}
# A shell that completes a line, and processes that share their work: each is one of its own.
PROCESSES = ("_TXT2IMG_COMPLETE", "RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
IDLE_MAX = 24 * 3600  # seconds
START_SECONDS = 60.0  # for a worker to open its socket, before it loads anything
POLL_SECONDS = 0.01
DIED = "Note: the worker ended before it drew anything; drawing without it"
LOST = (
    "Error: the worker ended in the middle; what it said is done, the rest is not: call again "
    "(--resume skips what is done)"
)


def seconds_in(text: str) -> int | None:
    """How long "90s", "10m" or "1h" is; None if it is no such time of 1 s … 24 h."""
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text, re.ASCII)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    return seconds if 1 <= seconds <= IDLE_MAX else None


def wanted(arguments: Sequence[str]) -> int | None:
    """For how many seconds a worker is to stay; None if none is wanted, or the line is wrong."""
    if not arguments or arguments[0] in OTHERS or ALONE & set(arguments):
        return None
    if any(name in os.environ for name in PROCESSES):
        return None
    text = option(arguments, ("--warm",)) or os.environ.get(VARIABLE) or configured(arguments)
    return seconds_in(text)


def configured(arguments: Sequence[str]) -> str:
    """The time that config.toml gives; empty if it gives none, or cannot be read: that is told
    when the command line is carried out.
    """
    from txt2img.errors import Txt2imgError
    from txt2img.system import user_config

    if arguments[0] == "replay":
        return ""
    try:
        return str(user_config.read().options(option(arguments, ("--profile",))).get("warm", ""))
    except Txt2imgError:
        return ""


def option(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """The last value of an option on a command line that nobody has parsed yet."""
    value = None
    for index, word in enumerate(arguments):
        if word == "--":
            break
        if word in names:
            value = arguments[index + 1] if index + 1 < len(arguments) else None
        for name in names:
            if name.startswith("--") and word.startswith(f"{name}="):
                value = word[len(name) + 1 :]
            elif len(name) == 2 and word.startswith(name) and len(word) > 2 and word[1] != "-":
                value = word[2:]
    return value


def model_of(arguments: Sequence[str]) -> str:
    """Which model a command line names, a file by its full name; "default" if it names none.

    This only finds the worker: which model is drawn with is decided there, as without it.
    """
    given = option(arguments, ("-m", "--model")) or "default"
    return os.path.realpath(given) if os.path.exists(given) else given


def by_worker(arguments: Sequence[str]) -> int | None:
    """The exit code of a line that a worker carried out; None if it is still to be done here."""
    idle = wanted(arguments)
    if idle is None:
        return None
    open_missing()
    if not protocol.HAS_SOCKETS:
        log("Note: this system has no Unix sockets for a warm worker; drawing without one")
        return None
    try:
        model = model_of(arguments)
        return Call(arguments, model, idle).by(protocol.folder() / protocol.name_of(model))
    except Stopped as stop:
        log(STOPPED)
        return stop.code
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        log(f"Note: no warm worker ({str(reason).lower()}); drawing without one")
    except protocol.NotOurs as error:
        log(f"Note: no warm worker: {error}; drawing without one")
    return None


class Call:
    """One command line on its way to a worker."""

    def __init__(self, arguments: Sequence[str], model: str, idle: int) -> None:
        self.arguments, self.model, self.idle = arguments, model, idle
        self.signals = 0
        self.connection: socket.socket | None = None  # once the worker draws for us

    def by(self, path: Path) -> int | None:
        """Have the worker at `path` do it, started if there is none; None if it is busy or dies.

        Stopped, OSError, EOFError, ValueError, NotOurs.
        """
        before = {n: signal.signal(n, self.take) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            connection = reserved(path, self.idle)
            if connection is None:
                return None
            with connection:
                self._hand_over(connection)
                return self._outcome(connection)
        finally:
            self.connection = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def take(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on; the third ends this call at once, as it would without a worker."""
        self.signals += 1
        if self.connection is None:
            raise Stopped(number)
        if self.signals > 2:
            os._exit(128 + number)
        with suppress(OSError):  # its end is about to be read
            self.connection.send(bytes([number]))

    def _hand_over(self, connection: socket.socket) -> None:
        """Send the order, with all that makes its output this call's."""
        mask = os.umask(0o077)
        os.umask(mask)
        order = {
            "arguments": list(self.arguments),
            "model": self.model,
            "idle": self.idle,
            "umask": mask,
            "closed": sorted(CLOSED),
            "variables": dict(os.environ),
        }
        here = os.open(".", os.O_RDONLY)
        try:
            protocol.send(connection, order, (0, 1, 2, here))
        finally:
            os.close(here)
        connection.settimeout(None)
        self.connection = connection

    def _outcome(self, connection: socket.socket) -> int | None:
        """The exit code; None if the worker died and nothing has happened yet."""
        touched = False
        while True:
            try:
                answer, _ = protocol.receive(connection)
            except (OSError, EOFError):
                log(LOST if touched else DIED)
                return 1 if touched else None
            if "code" in answer:
                return int(str(answer["code"]))
            touched = True


def reserved(path: Path, idle: int) -> socket.socket | None:
    """A connection to the worker at `path`, which is ours now; None if it works for another call.

    One is started if nobody listens, or who does is about to end. OSError, ValueError, NotOurs.
    """
    end = time.monotonic() + START_SECONDS
    child: Popen[bytes] | None = None
    while True:
        with suppress(FileNotFoundError, ConnectionError, EOFError):
            connection = protocol.connect(path)
            answer = _asked(connection)
            if answer.get("go"):
                if child is not None:
                    child.returncode = 0  # it outlives this process on purpose: nobody waits for it
                return connection
            connection.close()
            if not answer.get("ending"):
                return None
        if time.monotonic() > end or (child is not None and child.poll()):
            raise OSError("it does not start")
        if child is None or child.poll() == 0:  # 0: another was there already, and may be no more
            child = _started(path, idle)
        time.sleep(POLL_SECONDS)


def _asked(connection: socket.socket) -> dict[str, object]:
    """What a worker answers to who wants it; who it does not answer closes the connection."""
    try:
        protocol.send(connection, {"do": "run"})
        return protocol.receive(connection)[0]
    except BaseException:
        connection.close()
        raise


def _started(path: Path, idle: int) -> "Popen[bytes]":
    """A worker that is about to listen at `path`. OSError."""
    import subprocess

    root = str(Path(__file__).parent.parent.parent.parent)
    others = os.environ.get("PYTHONPATH")
    paths = root if not others else os.pathsep.join((root, others))
    return subprocess.Popen(
        (sys.executable, "-P", "-m", "txt2img.cli.daemon", str(path), str(idle)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        cwd="/",
        start_new_session=True,
    )
