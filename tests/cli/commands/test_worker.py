"""A worker gives the same bytes, streams, signals and exit codes as a process of its own."""

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
from PIL import Image

from tests.conftest import Command
from txt2img.cli.commands.worker import ask
from txt2img.cli.worker import client
from txt2img.images import image_file

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


class Workers:
    """A folder of sockets, and command lines that use the workers there."""

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
def running(sd1_folder: Path) -> Iterator[Workers]:
    """A worker that is warm, and is gone at the end whatever happens."""
    with tempfile.TemporaryDirectory(prefix="t2i-", dir="/tmp") as runtime:
        workers = Workers(Path(runtime), sd1_folder)
        first = workers.call(*SIZE, "-o", f"{runtime}/a.png", "a cat")
        assert (first.returncode, first.stderr) == (0, b"")
        yield workers
        for path in workers.runtime.rglob("*.sock"):
            state = ask(path, "stop")
            if state is not None and state["busy"]:
                os.kill(int(str(state["pid"])), signal.SIGKILL)


@pytest.fixture
def workers(running: Workers, folder: Path) -> Iterator[Workers]:
    """The same, in an empty folder; every test leaves the one worker alive, and free."""
    pid = running.state()["pid"]
    yield running
    until(running.idle)
    assert running.state()["pid"] == pid


def test_bytes_and_streams_are_those_of_a_call_without(workers: Workers, command: Command) -> None:
    line = ("-m", workers.model, "--device", "cpu", *SIZE, "a cat")
    assert command(*line, "-o", "cold.png").code == 0
    done = workers.call(*SIZE, "-o", "w.png", "a cat")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"w.png\n", b"")
    assert Path("w.png").read_bytes() == Path("cold.png").read_bytes()
    assert workers.call(*SIZE, "-o", "-", "a cat").stdout == Path("cold.png").read_bytes()


def test_a_callers_closed_output_is_no_place_for_a_picture(workers: Workers) -> None:
    line = shlex.join(workers.line(*SIZE, "-o", "-", "a cat"))
    done = subprocess.run(
        ["sh", "-c", f"{line} >&-"], capture_output=True, env=workers.variables, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: -o - writes to standard output, which is closed")
    done = workers.call(*SIZE, "-o", "-", "a cat")  # the next caller's is open
    assert (done.returncode, done.stdout[:4]) == (0, b"\x89PNG")


def test_prompts_come_through_standard_input(workers: Workers) -> None:
    done = workers.call(*SIZE, "--prompts", "-", "-o", "out/", given=b"a cat\na dog\n")
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == len(list(Path("out").glob("*.png"))) == 2


def test_pictures_to_begin_from_are_read_where_the_caller_is(
    workers: Workers, command: Command
) -> None:
    Path("shots").mkdir()
    for i in (1, 2):
        start = Image.linear_gradient("L").resize((64, 64)).rotate(90 * i)
        start.convert("RGB").save(f"shots/{i}.png")
    line = (*SIZE, "a cat", "-i", "shots")
    assert command("-m", workers.model, "--device", "cpu", *line, "-o", "cold/").code == 0
    done = workers.call(*line, "-o", "warm/")
    assert (done.returncode, done.stdout) == (0, b"warm/1.png\nwarm/2.png\n")
    for name in ("1.png", "2.png"):
        assert Path("warm", name).read_bytes() == Path("cold", name).read_bytes()
    given = Path("shots/1.png").read_bytes()
    done = workers.call(*SIZE, "a cat", "-i", "-", "-o", "-", given=given)
    assert done.returncode == 0
    Path("piped.png").write_bytes(done.stdout)
    piped, named = (image_file.read(Path(path)) for path in ("piped.png", "warm/1.png"))
    assert piped.pixels_sha256 == named.pixels_sha256
    done = workers.call(*SIZE, "--prompts", "-", "-i", "-", given=b"a cat\n")
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: the prompts and a picture cannot both come on standard")
    done = workers.call(*SIZE, "-i", "-", given=given)
    assert done.returncode == 2 and done.stderr.startswith(b"Error: no prompt")


def test_a_picture_is_drawn_again(workers: Workers) -> None:
    assert workers.call(*SIZE, "-o", "x.png", "a cat").returncode == 0
    assert workers.call("replay", "x.png", "-o", "y.png").returncode == 0
    assert Path("y.png").read_bytes() == Path("x.png").read_bytes()


def test_failures_have_their_codes_and_do_not_poison_the_next(workers: Workers) -> None:
    assert workers.call("--steps", "0", "a cat").returncode == 2
    assert workers.call("--nonsense", "a cat").returncode == 2
    Path("x.png").touch()
    done = workers.call(*SIZE, "-o", "x.png", "a cat")
    assert done.returncode == 1
    assert done.stderr.startswith(b'Error: "x.png" exists')
    assert workers.call(*SIZE, "-o", "y.png", "a cat").returncode == 0


def test_variables_folder_and_permissions_are_the_callers(workers: Workers) -> None:
    done = workers.call(*SIZE, "-o", "x.png", "a cat", TXT2IMG_LORAS="/none")
    assert (done.returncode, done.stderr[:21]) == (1, b"Error: TXT2IMG_LORAS:")
    assert workers.call(*SIZE, "-o", "x.png", "a cat", umask=0o027).returncode == 0
    assert Path("x.png").stat().st_mode & 0o777 == 0o640
    assert workers.call(*SIZE, "-o", "y.png", "a cat", umask=0o022).returncode == 0
    assert Path("y.png").stat().st_mode & 0o777 == 0o644
    os.chdir(Path(workers.model).parent)
    relative = workers.call(*SIZE, "-m", Path(workers.model).name, "-o", "-", "a cat")
    assert relative.stdout.startswith(b"\x89PNG")  # by the same worker: `workers` sees to that


def test_unwritable_output_is_reported_as_without_a_worker(workers: Workers) -> None:
    with open("/dev/full", "wb") as full:
        call = subprocess.Popen(
            workers.line(*SIZE, "a cat"), stdout=full, stderr=subprocess.PIPE, env=workers.variables
        )
        _, stderr = call.communicate(timeout=PATIENCE)
    assert call.returncode == 1
    assert stderr == b"Error: cannot write to standard output: no space left on device\n"


def test_a_reader_that_left_is_no_error_to_talk_about(workers: Workers) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    call = subprocess.Popen(
        workers.line(*SIZE, "a cat"), stdout=writer, stderr=subprocess.PIPE, env=workers.variables
    )
    os.close(writer)
    _, stderr = call.communicate(timeout=PATIENCE)
    assert (call.returncode, stderr) == (1, b"")


def test_closed_streams_do_no_harm(workers: Workers) -> None:
    line = " ".join(map(repr, workers.line(*SIZE, "-o", "x.png", "cat")))
    shell = ["bash", "-c", f"{line} <&- >&- 2>&-"]
    assert (
        subprocess.run(shell, env=workers.variables, timeout=PATIENCE, check=False).returncode == 0
    )
    assert Path("x.png").exists()


def test_a_terminal_is_one(workers: Workers) -> None:
    ours, theirs = pty.openpty()
    variables = {**workers.variables, "TERM": "xterm", "COLUMNS": "60"}
    line = workers.line(*SIZE, "-o", "x.png", "a cat")
    with open(ours, "rb", buffering=0) as terminal:
        call = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=theirs, env=variables)
        os.close(theirs)
        shown = b""
        while (part := read(terminal.fileno())) != b"":
            shown += part
        assert call.wait(PATIENCE) == 0
    assert b"loading" in shown


def read(terminal: int) -> bytes:
    """The next output on a terminal; empty once no process has it open."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def test_a_busy_worker_answers_at_once(workers: Workers) -> None:
    first = workers.started(*SIZE, "--prompts", "-", "-o", "out/", stdin=subprocess.PIPE)
    until(workers.busy)
    assert client.connect_or_start(workers.socket(), 60) is None  # and draws without it
    first.kill()
    first.wait(PATIENCE)
    until(workers.idle)  # though it waited for the first one's input, which will not come
    out, stderr = first.communicate(timeout=PATIENCE)
    assert (out, stderr[:0]) == (b"", b"")


def drawing(workers: Workers) -> "subprocess.Popen[bytes]":
    """A command that has drawn its first picture, and takes long for its second."""
    Path("two.txt").write_text(TWO)
    size = ("-W", "64", "-H", "64", "--seed", "1")
    call = workers.started(*size, "--prompts", "two.txt", "-o", "out/")
    assert call.stdout is not None
    ready, _, _ = select.select([call.stdout], [], [], PATIENCE)
    assert ready and call.stdout.readline() == b"out/first-1.png\n"
    return call


def finishing(workers: Workers, number: signal.Signals) -> "subprocess.Popen[bytes]":
    """A command that got a signal while it drew its second picture, and has reported it."""
    while True:
        call = drawing(workers)
        call.send_signal(number)
        assert call.stderr is not None
        line = call.stderr.readline()
        if line == FINISHING:
            return call
        assert line == STOPPED  # it came between the two pictures: once more
        call.communicate(timeout=PATIENCE)
        shutil.rmtree("out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_stop_a_call_now(workers: Workers, number: signal.Signals) -> None:
    call = finishing(workers, number)
    call.send_signal(number)
    out, stderr = call.communicate(timeout=PATIENCE)
    assert (call.returncode, out) == (128 + number, b"")
    assert stderr.endswith(STOPPED)
    rest = stderr.removesuffix(STOPPED)  # nothing, if it came before the first step was done
    assert not rest or rest.startswith(b"The latent of step ")
    assert not Path("out/second-1.png").exists()


def test_one_signal_finishes_the_picture(workers: Workers) -> None:
    size = ("-W", "64", "-H", "64", "--steps", "20", "--seed", "1")
    call = workers.started(*size, "--count", "1000", "-o", "out/", "a")
    assert call.stdout is not None
    assert call.stdout.readline() == b"out/a-1.png\n"
    call.send_signal(signal.SIGINT)
    paths, stderr = call.communicate(timeout=PATIENCE)
    assert call.returncode == 130
    assert stderr.removeprefix(FINISHING) == STOPPED  # it may have come between two pictures
    assert 1 + len(paths.splitlines()) == len(list(Path("out").glob("*.png"))) < 1000


def test_three_signals_end_a_call_even_if_the_worker_hangs(workers: Workers) -> None:
    call = workers.started(*SIZE, "--prompts", "-", "-o", "out/", stdin=subprocess.PIPE)
    until(workers.busy)
    worker = int(str(workers.state()["pid"]))
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


def test_a_caller_that_dies_stops_its_job(workers: Workers) -> None:
    call = drawing(workers)
    call.kill()
    call.communicate(timeout=PATIENCE)  # to the end of what the worker can write
    until(workers.idle)
    assert not Path("out/second-1.png").exists()


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_replaced(workers: Workers, sd1_folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="t2i-", dir="/tmp") as runtime:
        other = Workers(Path(runtime), sd1_folder)
        call = other.started(*SIZE, "-o", "k.png", "a cat")
        until(lambda: bool(list(other.runtime.rglob("*.sock"))) and other.busy())
        os.kill(int(str(other.state()["pid"])), signal.SIGKILL)
        out, stderr = call.communicate(timeout=PATIENCE)
        assert (call.returncode, out, stderr.decode()) == (0, b"k.png\n", f"{client.DIED}\n")
        assert Path("k.png").exists()
        assert ask(other.socket(), "status") is None
        assert not list(other.runtime.rglob("*.sock"))
