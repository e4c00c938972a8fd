"""Client of the worker: hand a command line over, or report why it has to run here."""

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

from txt2img.cli.options.aliases import spellings
from txt2img.cli.terminal.console import CLOSED, log, open_missing
from txt2img.cli.terminal.signals import STOPPED, Stopped
from txt2img.cli.worker import protocol

if TYPE_CHECKING:
    from subprocess import Popen

KEEP_ALIVE = spellings("keep-alive")
VARIABLE = "TXT2IMG_KEEP_ALIVE"
# Commands that draw nothing, or load several models.
COMMANDS_WITHOUT_WORKER = {
    *("info", "verify", "train", "worker", "models", "decode", "env", "again"),
    *("upscale", "preprocess", "enhance", "serve", "samplers"),
}
OPTIONS_WITHOUT_WORKER = {
    *("--help", "--version", "--dry-run", *spellings("no-keep-alive")),
    *("--install-completion", "--show-completion"),
}
# Set for shell completion and for the processes of a launch.
ENV_WITHOUT_WORKER = {
    *("_TXT2IMG_COMPLETE", "RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"),
}
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
IDLE_SECONDS_MAX = 24 * 3600
START_SECONDS = 60.0  # for a new worker to open its socket
POLL_SECONDS = 0.01
DIED = "Note: the worker died before it drew anything; drawing without it"
LOST = (
    "Error: the worker died; pictures whose paths were printed are done. "
    "Run the command again for the rest (--resume skips what is done)"
)


def seconds_in(text: str) -> int | None:
    """The seconds of a time such as "90s", "10m" or "1h"; None unless it is 1 s to 24 h."""
    match = re.fullmatch(r"(\d{1,6})([smh]?)", text, re.ASCII)
    seconds = int(match[1]) * UNITS[match[2]] if match else 0
    return seconds if 1 <= seconds <= IDLE_SECONDS_MAX else None


def idle_seconds(arguments: Sequence[str]) -> int | None:
    """The seconds for which a worker stays alive; None if the line needs none, or is invalid."""
    if not arguments or arguments[0] in COMMANDS_WITHOUT_WORKER:
        return None
    if OPTIONS_WITHOUT_WORKER & set(arguments) or ENV_WITHOUT_WORKER & set(os.environ):
        return None
    texts = (option_value(arguments, KEEP_ALIVE), os.environ.get(VARIABLE))
    return seconds_in(next(filter(None, texts), "") or configured_time(arguments))


def configured_time(arguments: Sequence[str]) -> str:
    """The time that config.toml gives; empty if none, or if it is invalid, reported later."""
    from txt2img.errors import Txt2imgError
    from txt2img.system import user_config

    if arguments[0] == "replay":
        return ""
    try:
        options = user_config.read_config().options(option_value(arguments, ("--profile",)))
    except Txt2imgError:
        return ""
    return next((str(value) for key, value in options.items() if f"--{key}" in KEEP_ALIVE), "")


def option_value(arguments: Sequence[str], names: Sequence[str]) -> str | None:
    """The last value of an option on an unparsed command line."""
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
    """The model that a command line names, a file by its full path.

    It only selects the worker, which parses the line again.
    """
    given = option_value(arguments, ("-m", *spellings("model"))) or "default"
    return os.path.realpath(given) if os.path.exists(given) else given


def run_in_worker(arguments: Sequence[str]) -> int | None:
    """Run a command line in a worker. Returns its exit code, None if it has to run here."""
    idle = idle_seconds(arguments)
    if idle is None:
        return None
    open_missing()
    if not protocol.HAS_SOCKETS:
        log("Note: this system has no Unix sockets for a worker; drawing without one")
        return None
    try:
        model = model_of(arguments)
        return Call(arguments, model, idle).run(protocol.folder() / protocol.socket_name(model))
    except Stopped as stop:
        log(STOPPED)
        return stop.code
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        log(f"Note: no worker ({str(reason).lower()}); drawing without one")
    except protocol.WrongOwner as error:
        log(f"Note: no worker: {error}; drawing without one")
    return None


class Call:
    """A command line that a worker runs for this process."""

    def __init__(self, arguments: Sequence[str], model: str, idle: int) -> None:
        self.arguments, self.model, self.idle = arguments, model, idle
        self.signals = 0
        self.connection: socket.socket | None = None  # while the worker runs it

    def run(self, path: Path) -> int | None:
        """Run it in the worker at `path`, or a new one. None if that is busy or dies.

        Stopped, OSError, EOFError, ValueError, WrongOwner.
        """
        before = {n: signal.signal(n, self.forward_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            connection = connect_or_start(path, self.idle)
            if connection is None:
                return None
            with connection:
                self._hand_over(connection)
                return self._outcome(connection)
        finally:
            self.connection = None
            for number, handler in before.items():
                signal.signal(number, handler)

    def forward_signal(self, number: int, frame: FrameType | None) -> None:
        """Forward a signal to the worker; the third exits at once, as without a worker."""
        self.signals += 1
        if self.connection is None:
            raise Stopped(number)
        if self.signals > 2:
            os._exit(128 + number)
        with suppress(OSError):  # the worker is gone, which _outcome reports
            self.connection.send(bytes([number]))

    def _hand_over(self, connection: socket.socket) -> None:
        """Send the job: arguments, streams, folder, umask and environment."""
        mask = os.umask(0o077)
        os.umask(mask)
        job = {
            "arguments": list(self.arguments),
            "model": self.model,
            "idle": self.idle,
            "umask": mask,
            "closed": sorted(CLOSED),
            "variables": dict(os.environ),
        }
        here = os.open(".", os.O_RDONLY)
        try:
            protocol.send(connection, job, (0, 1, 2, here))
        finally:
            os.close(here)
        connection.settimeout(None)
        self.connection = connection

    def _outcome(self, connection: socket.socket) -> int | None:
        """The exit code; None if the worker died before it used the streams."""
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


def connect_or_start(path: Path, idle: int) -> socket.socket | None:
    """A connection to the worker at `path`, reserved for this call; None if it is busy.

    Starts a worker if none listens, or the one that does is about to end.
    OSError, ValueError, WrongOwner.
    """
    deadline = time.monotonic() + START_SECONDS
    child: Popen[bytes] | None = None
    while True:
        with suppress(FileNotFoundError, ConnectionError, EOFError):
            connection = protocol.connect(path)
            answer = request_run(connection)
            if answer.get("go"):
                if child is not None:
                    child.returncode = 0  # it outlives this process, so no warning about it
                return connection
            connection.close()
            if not answer.get("ending"):
                return None
        if time.monotonic() > deadline or (child is not None and child.poll()):
            raise OSError("it does not start")
        if child is None or child.poll() == 0:  # 0: another worker was faster, and may be gone
            child = start(path, idle)
        time.sleep(POLL_SECONDS)


def request_run(connection: socket.socket) -> dict[str, object]:
    """A worker's answer to the request to run a job. Closes the connection if there is none."""
    try:
        protocol.send(connection, {"do": "run"})
        return protocol.receive(connection)[0]
    except BaseException:
        connection.close()
        raise


def start(path: Path, idle: int) -> "Popen[bytes]":
    """Start a worker process that will listen at `path`. OSError."""
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
