"""The calling side of a warm worker: hand a command line over, or say that it cannot be."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from txt2img.cli import wire
from txt2img.cli.show import tell

VARIABLE = "TXT2IMG_WARM"
# Command lines that a worker is of no use to: they draw nothing, or more than draw.
OTHERS = {"info", "verify", "train", "worker", "models", "replay", "decode", "config"}
ALONE = {"--help", "--version", "--dry-run", "--no-warm"}
ABOUT = {"-m": 0, "--model": 0, "--device": 1, "--dtype": 2, "--vae": 3}
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
IDLE_MAX = 24 * 3600  # seconds
START_SECONDS = 20.0  # for a worker to open its socket, before it loads anything


def seconds_in(text: str) -> int | None:
    """How long "90s", "10m" or "1h" is; None if it is no such time of 1 s … 24 h."""
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text, re.ASCII)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0
    return seconds if 1 <= seconds <= IDLE_MAX else None


def wanted(arguments: Sequence[str]) -> int | None:
    """For how many seconds a worker is to stay; None if none is wanted, or the line is wrong."""
    if not arguments or arguments[0] in OTHERS or ALONE & set(arguments):
        return None
    return seconds_in(option(arguments, ("--warm",)) or os.environ.get(VARIABLE, ""))


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


def about(arguments: Sequence[str]) -> list[str | None]:
    """Model, device, dtype and VAE of a command line; files by their full names."""
    values: list[str | None] = [None] * 4
    for name in ABOUT:
        given = option(arguments, (name,))
        if given is not None:
            values[ABOUT[name]] = os.path.realpath(given) if os.path.exists(given) else given
    return values


def by_worker(arguments: Sequence[str]) -> int | None:
    """The exit code of a line that a worker carried out; None if it is still to be done here."""
    idle = wanted(arguments)
    if idle is None:
        return None
    if not wire.HAS_SOCKETS:
        tell("Note: this system has no Unix sockets for a warm worker; drawing without one")
        return None
    try:
        path = wire.folder() / wire.name_of(about(arguments))
        return Call(arguments, idle).by(path)
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        tell(f"Note: no warm worker ({str(reason).lower()}); drawing without one")
    except wire.NotOurs as error:
        tell(f"Note: no warm worker: {error}; drawing without one")
    return None


class Call:
    """One command line on its way to a worker."""

    def __init__(self, arguments: Sequence[str], idle: int) -> None:
        self.arguments, self.idle = arguments, idle
        self.signals = 0
        self.connection: socket.socket | None = None

    def by(self, path: Path) -> int | None:
        """Have the worker at `path` do it, started if there is none; None if it is busy."""
        with _connected(path, self.idle) as connection:
            here = os.open(".", os.O_RDONLY)
            try:
                order = {"do": "run", "arguments": list(self.arguments), "idle": self.idle}
                wire.send(connection, order | {"variables": dict(os.environ)}, (0, 1, 2, here))
            finally:
                os.close(here)
            answer, _ = wire.receive(connection)
            return self._wait(connection) if answer.get("go") else None

    def _wait(self, connection: socket.socket) -> int | None:
        self.connection = connection
        connection.settimeout(None)
        before = {n: signal.signal(n, self._forward) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            answer, _ = wire.receive(connection)
            return int(str(answer["code"]))
        except (OSError, EOFError):
            if "-" in self.arguments:
                tell("Error: the worker ended in the middle of a stream; call again")
                return 1
            tell("Note: the worker ended before the picture was drawn; drawing without it")
            return None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on; the third ends this call at once, as it would without a worker."""
        self.signals += 1
        assert self.connection is not None
        try:
            self.connection.send(bytes([number]))
        except OSError:
            return  # the answer, or its absence, is about to be read
        if self.signals > 2:
            os._exit(128 + number)


def _connected(path: Path, idle: int) -> socket.socket:
    """A connection to the worker at `path`, which is started if nobody listens. OSError."""
    try:
        return wire.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    root = str(Path(__file__).parent.parent.parent)
    others = os.environ.get("PYTHONPATH")
    paths = root if not others else os.pathsep.join((root, others))
    line = (sys.executable, "-P", "-m", "txt2img.cli.serve", str(path), str(idle))
    worker = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths},
        cwd="/",
        start_new_session=True,
    )
    worker.returncode = 0  # it outlives this process on purpose: nobody waits for it
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return wire.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
