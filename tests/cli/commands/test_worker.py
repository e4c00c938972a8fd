"""A warm worker gives what a call without one gives: bytes, streams, signals, exit codes."""

import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Command
from txt2img.cli.commands.worker import ask
from txt2img.cli.worker import client

ROOT = Path(__file__).parent.parent.parent.parent
SIZE = ("-W", "64", "-H", "64", "--steps", "2", "--seed", "1")
# A picture that is drawn at once, which tells that the next one is being drawn, for long.
TWO = "first --steps 1\nsecond --steps 900\n"
FINISHING = b"Finishing the picture; once more stops at once.\n"
STOPPED = b"Stopped; pictures that were finished are kept.\n"
PATIENCE = 300.0  # seconds, for machines that do other things too
Done = subprocess.CompletedProcess[bytes]


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class House:
    """A folder for sockets, and calls of the command that use the workers in it."""

    def __init__(self, runtime: Path, model: Path) -> None:
        self.runtime, self.model = runtime, str(model)
        self.variables = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(runtime)}

    def line(self, *arguments: str) -> list[str]:
        model = () if "-m" in arguments else ("-m", self.model)
        more = (*model, "--device", "cpu", "--keep-alive", "5m")
        return [sys.executable, "-m", "txt2img", *arguments, *more]

    def call(self, *arguments: str, given: bytes = b"", umask: int = -1, **more: str) -> Done:
        return subprocess.run(
            self.line(*arguments),
            input=given,
            capture_output=True,
            env={**self.variables, **more},
            umask=umask,
            timeout=PATIENCE,
            check=False,
        )

    def started(self, *arguments: str, stdin: int | None = None) -> "subprocess.Popen[bytes]":
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.line(*arguments), stdin=stdin, stdout=pipe, stderr=pipe, env=self.variables
        )

    def socket(self) -> Path:
        [path] = self.runtime.rglob("*.sock")
        return path

    def state(self) -> dict[str, object]:
        state = ask(self.socket(), "status")
        assert state is not None
        return state

    def busy(self) -> bool:
        return bool(self.state()["busy"])

    def idle(self) -> bool:
        return not self.busy()


@pytest.fixture(scope="module")
def home(sd1_folder: Path) -> Iterator[House]:
    """A worker that is warm, and is gone at the end whatever happens."""
    with tempfile.TemporaryDirectory(prefix="t2i-", dir="/tmp") as runtime:
        house = House(Path(runtime), sd1_folder)
        first = house.call(*SIZE, "-o", f"{runtime}/a.png", "a cat")
        assert (first.returncode, first.stderr) == (0, b"")
        yield house
        for path in house.runtime.rglob("*.sock"):
            state = ask(path, "stop")
            if state is not None and state["busy"]:
                os.kill(int(str(state["pid"])), signal.SIGKILL)


@pytest.fixture
def house(home: House, folder: Path) -> Iterator[House]:
    """The same, in an empty folder; every test leaves the one worker alive, and free."""
    pid = home.state()["pid"]
    yield home
    until(home.idle)
    assert home.state()["pid"] == pid


def test_bytes_and_streams_are_those_of_a_call_without(house: House, command: Command) -> None:
    line = ("-m", house.model, "--device", "cpu", *SIZE, "a cat")
    assert command(*line, "-o", "cold.png").code == 0
    done = house.call(*SIZE, "-o", "w.png", "a cat")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"w.png\n", b"")
    assert Path("w.png").read_bytes() == Path("cold.png").read_bytes()
    assert house.call(*SIZE, "-o", "-", "a cat").stdout == Path("cold.png").read_bytes()


def test_a_callers_closed_output_is_no_place_for_a_picture(house: House) -> None:
    line = shlex.join(house.line(*SIZE, "-o", "-", "a cat"))
    done = subprocess.run(
        ["sh", "-c", f"{line} >&-"], capture_output=True, env=house.variables, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: -o - writes to standard output, which is closed")
    done = house.call(*SIZE, "-o", "-", "a cat")  # the next caller's is open
    assert (done.returncode, done.stdout[:4]) == (0, b"\x89PNG")


def test_prompts_come_through_standard_input(house: House) -> None:
    done = house.call(*SIZE, "--prompts", "-", "-o", "out/", given=b"a cat\na dog\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == len(list(Path("out").glob("*.png"))) == 2


def test_a_picture_is_drawn_again(house: House) -> None:
    assert house.call(*SIZE, "-o", "x.png", "a cat").returncode == 0
    assert house.call("replay", "x.png", "-o", "y.png").returncode == 0
    assert Path("y.png").read_bytes() == Path("x.png").read_bytes()


def test_failures_have_their_codes_and_do_not_poison_the_next(house: House) -> None:
    assert house.call("--steps", "0", "a cat").returncode == 2
    assert house.call("--nonsense", "a cat").returncode == 2
    Path("x.png").touch()
    done = house.call(*SIZE, "-o", "x.png", "a cat")
    assert done.returncode == 1
    assert done.stderr.startswith(b'Error: "x.png" exists')
    assert house.call(*SIZE, "-o", "y.png", "a cat").returncode == 0


def test_variables_folder_and_permissions_are_the_callers(house: House) -> None:
    done = house.call(*SIZE, "-o", "x.png", "a cat", TXT2IMG_LORAS="/none")
    assert (done.returncode, done.stderr[:21]) == (1, b"Error: TXT2IMG_LORAS:")
    assert house.call(*SIZE, "-o", "x.png", "a cat", umask=0o027).returncode == 0
    assert Path("x.png").stat().st_mode & 0o777 == 0o640
    assert house.call(*SIZE, "-o", "y.png", "a cat", umask=0o022).returncode == 0
    assert Path("y.png").stat().st_mode & 0o777 == 0o644
    os.chdir(Path(house.model).parent)
    relative = house.call(*SIZE, "-m", Path(house.model).name, "-o", "-", "a cat")
    assert relative.stdout.startswith(b"\x89PNG")  # by the same worker: `house` sees to that


def test_unwritable_output_is_reported_as_without_a_worker(house: House) -> None:
    with open("/dev/full", "wb") as full:
        call = subprocess.Popen(
            house.line(*SIZE, "a cat"), stdout=full, stderr=subprocess.PIPE, env=house.variables
        )
        _, told = call.communicate(timeout=PATIENCE)
    assert call.returncode == 1
    assert told == b"Error: cannot write to standard output: no space left on device\n"


def test_a_reader_that_left_is_no_error_to_talk_about(house: House) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    call = subprocess.Popen(
        house.line(*SIZE, "a cat"), stdout=writer, stderr=subprocess.PIPE, env=house.variables
    )
    os.close(writer)
    _, told = call.communicate(timeout=PATIENCE)
    assert (call.returncode, told) == (1, b"")


def test_closed_streams_do_no_harm(house: House) -> None:
    line = " ".join(map(repr, house.line(*SIZE, "-o", "x.png", "cat")))
    shell = ["bash", "-c", f"{line} <&- >&- 2>&-"]
    assert subprocess.run(shell, env=house.variables, timeout=PATIENCE, check=False).returncode == 0
    assert Path("x.png").exists()


def test_a_terminal_is_one(house: House) -> None:
    ours, theirs = pty.openpty()
    variables = {**house.variables, "TERM": "xterm", "COLUMNS": "60"}
    line = house.line(*SIZE, "-o", "x.png", "a cat")
    with open(ours, "rb", buffering=0) as terminal:
        call = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=theirs, env=variables)
        os.close(theirs)
        shown = b""
        while (part := read(terminal.fileno())) != b"":
            shown += part
        assert call.wait(PATIENCE) == 0
    assert b"loading" in shown


def read(terminal: int) -> bytes:
    """What a terminal shows next; nothing when nobody is left who could write to it."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_a_busy_worker_answers_at_once(house: House) -> None:
    first = house.started(*SIZE, "--prompts", "-", "-o", "out/", stdin=subprocess.PIPE)
    until(house.busy)
    assert client.connect_or_start(house.socket(), 60) is None  # and draws without it
    first.kill()
    first.wait(PATIENCE)
    until(house.idle)  # though it waited for the first one's input, which will not come
    out, told = first.communicate(timeout=PATIENCE)
    assert (out, told[:0]) == (b"", b"")


def drawing(house: House) -> "subprocess.Popen[bytes]":
    """A call that has drawn its first picture, and draws its second for long."""
    Path("two.txt").write_text(TWO)
    size = ("-W", "64", "-H", "64", "--seed", "1")
    call = house.started(*size, "--prompts", "two.txt", "-o", "out/")
    assert call.stdout is not None
    ready, _, _ = select.select([call.stdout], [], [], PATIENCE)
    assert ready and call.stdout.readline() == b"out/first-1.png\n"
    return call


def finishing(house: House, number: signal.Signals) -> "subprocess.Popen[bytes]":
    """A call that was sent a signal while it drew its second picture, and says so."""
    while True:
        call = drawing(house)
        call.send_signal(number)
        assert call.stderr is not None
        line = call.stderr.readline()
        if line == FINISHING:
            return call
        assert line == STOPPED  # it came between the two pictures: once more
        call.communicate(timeout=PATIENCE)
        shutil.rmtree("out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_stop_a_call_now(house: House, number: signal.Signals) -> None:
    call = finishing(house, number)
    call.send_signal(number)
    out, told = call.communicate(timeout=PATIENCE)
    assert (call.returncode, out) == (128 + number, b"")
    assert told.endswith(STOPPED)
    kept = told.removesuffix(STOPPED)  # nothing, if it came before the first step was done
    assert not kept or kept.startswith(b"The latent of step ")
    assert not Path("out/second-1.png").exists()


def test_one_signal_finishes_the_picture(house: House) -> None:
    size = ("-W", "64", "-H", "64", "--steps", "20", "--seed", "1")
    call = house.started(*size, "--count", "1000", "-o", "out/", "a")
    assert call.stdout is not None
    assert call.stdout.readline() == b"out/a-1.png\n"
    call.send_signal(signal.SIGINT)
    paths, told = call.communicate(timeout=PATIENCE)
    assert call.returncode == 130
    assert told.removeprefix(FINISHING) == STOPPED  # it may have come between two pictures
    assert 1 + len(paths.splitlines()) == len(list(Path("out").glob("*.png"))) < 1000


def test_three_signals_end_a_call_even_if_the_worker_hangs(house: House) -> None:
    call = house.started(*SIZE, "--prompts", "-", "-o", "out/", stdin=subprocess.PIPE)
    until(house.busy)
    worker = int(str(house.state()["pid"]))
    os.kill(worker, signal.SIGSTOP)
    try:
        for _ in range(3):
            call.send_signal(signal.SIGINT)
            time.sleep(0.2)  # or they may be taken as one, which is why more follow below
        while call.poll() is None:
            call.send_signal(signal.SIGINT)
            time.sleep(0.2)
    finally:
        os.kill(worker, signal.SIGCONT)
    call.communicate(timeout=PATIENCE)
    assert call.returncode == 130


def test_a_caller_that_dies_stops_its_job(house: House) -> None:
    call = drawing(house)
    call.kill()
    call.communicate(timeout=PATIENCE)  # to the end of what the worker can write
    until(house.idle)
    assert not Path("out/second-1.png").exists()


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_replaced(house: House, sd1_folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="t2i-", dir="/tmp") as runtime:
        other = House(Path(runtime), sd1_folder)
        call = other.started(*SIZE, "-o", "k.png", "a cat")
        until(lambda: bool(list(other.runtime.rglob("*.sock"))) and other.busy())
        os.kill(int(str(other.state()["pid"])), signal.SIGKILL)
        out, told = call.communicate(timeout=PATIENCE)
        assert (call.returncode, out, told.decode()) == (0, b"k.png\n", f"{client.DIED}\n")
        assert Path("k.png").exists()
        assert ask(other.socket(), "status") is None
        assert not list(other.runtime.rglob("*.sock"))
