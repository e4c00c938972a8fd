"""A warm worker gives what a call without one gives: bytes, streams, signals, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from txt2img.cli import app, serve, warm, wire

ROOT = Path(__file__).parent.parent
SIZE = ("-W", "64", "-H", "64", "--steps", "2", "--seed", "1")
LONG = ("-W", "64", "-H", "64", "--steps", "900", "--seed", "1")
Done = subprocess.CompletedProcess[bytes]


class House:
    """A folder for sockets, and calls of the command that use the workers in it."""

    def __init__(self, runtime: Path, model: Path) -> None:
        self.model, self.runtime = str(model), runtime
        self.variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.variables |= {"XDG_RUNTIME_DIR": str(runtime)}

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "txt2img", *arguments]

    def drawing(self, *arguments: str) -> list[str]:
        return self.line("-m", self.model, "--device", "cpu", *arguments)

    def call(self, line: list[str], given: bytes = b"") -> Done:
        return subprocess.run(
            line, input=given, capture_output=True, env=self.variables, timeout=120, check=False
        )

    def warm(self, *arguments: str, given: bytes = b"") -> Done:
        return self.call(self.drawing("--warm", "5m", *arguments), given)

    def started(self, *arguments: str) -> subprocess.Popen[bytes]:
        line = self.drawing("--warm", "5m", *arguments)
        pipe = subprocess.PIPE
        return subprocess.Popen(line, stdout=pipe, stderr=pipe, env=self.variables)

    def states(self) -> list[dict[str, object]]:
        done = self.call(self.line("worker", "status", "--json"))
        return [json.loads(line) for line in done.stdout.splitlines()]

    def pid(self) -> int:
        [state] = self.states()
        return int(str(state["pid"]))

    def until_busy(self, busy: bool) -> None:
        for _ in range(200):
            if [state["busy"] for state in self.states()] == [busy]:
                return
            time.sleep(0.05)
        raise AssertionError(f"no worker became busy={busy}")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, sd1_folder: Path) -> Iterator[House]:
    """A worker that is warm."""
    house = House(tmp_path_factory.mktemp("r"), sd1_folder)
    folder = tmp_path_factory.mktemp("first")
    first = house.warm(*SIZE, "-o", str(folder / "a.png"), "a cat")
    assert (first.returncode, first.stderr) == (0, b"")
    yield house
    house.call(house.line("worker", "stop"))


def test_bytes_and_streams_are_those_of_a_call_without(house: House, folder: Path) -> None:
    pid = house.pid()
    warm_one = house.warm(*SIZE, "-o", "w.png", "a cat")
    cold_one = house.call(house.drawing("--no-warm", *SIZE, "-o", "c.png", "a cat"))
    assert Path("w.png").read_bytes() == Path("c.png").read_bytes()
    assert (warm_one.stdout, warm_one.stderr) == (b"w.png\n", b"")
    assert (cold_one.stdout, cold_one.stderr) == (b"c.png\n", b"")
    again = house.warm(*SIZE, "-o", "-", "a cat")
    assert again.stdout == Path("w.png").read_bytes()
    assert house.pid() == pid


def test_prompts_come_through_standard_input(house: House, folder: Path) -> None:
    done = house.warm(*SIZE, "--prompts", "-", "-o", "out/", given=b"a cat\na dog\n")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(list(Path("out").glob("*.png"))) == 2


def test_failures_have_their_codes_and_do_not_poison_the_next(house: House, folder: Path) -> None:
    pid = house.pid()
    assert house.warm("--steps", "0", "a cat").returncode == 2
    assert house.warm("--nonsense", "a cat").returncode == 2
    Path("x.png").touch()
    done = house.warm(*SIZE, "-o", "x.png", "a cat")
    assert done.returncode == 1
    assert done.stderr.startswith(b'Error: "x.png" exists')
    assert house.warm(*SIZE, "-o", "y.png", "a cat").returncode == 0
    assert house.pid() == pid


def test_two_calls_at_once_both_draw(house: House, folder: Path) -> None:
    first = house.started(*LONG, "-o", "long.png", "a cat")
    house.until_busy(True)
    second = house.warm(*SIZE, "-o", "b.png", "a cat")
    assert (second.returncode, second.stdout) == (0, b"b.png\n")
    first.kill()
    first.communicate()
    house.until_busy(False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_stop_a_call_now_and_leave_the_worker(
    house: House, folder: Path, number: signal.Signals
) -> None:
    pid = house.pid()
    call = house.started(*LONG, "-o", "long.png", "a cat")
    house.until_busy(True)
    for _ in range(2):
        time.sleep(0.5)
        call.send_signal(number)
    _, told = call.communicate(timeout=60)
    assert call.returncode == 128 + number
    assert told.endswith(b"Stopped; pictures that were finished are kept.\n")
    assert not Path("long.png").exists()
    assert house.pid() == pid


def test_one_signal_finishes_the_picture(house: House, folder: Path) -> None:
    call = house.started("-W", "64", "-H", "64", "--steps", "300", "-o", "out/", "a", "--count=9")
    house.until_busy(True)
    time.sleep(0.5)
    call.send_signal(signal.SIGINT)
    paths, told = call.communicate(timeout=60)
    assert call.returncode == 130
    assert told.startswith(b"Finishing the picture; once more stops at once.\n")
    assert 1 <= len(paths.splitlines()) < 9


def test_a_caller_that_dies_stops_its_job(house: House, folder: Path) -> None:
    pid = house.pid()
    call = house.started(*LONG, "-o", "long.png", "a cat")
    house.until_busy(True)
    call.kill()
    call.communicate()
    house.until_busy(False)
    assert not Path("long.png").exists()
    assert house.pid() == pid


def test_a_killed_worker_is_told_and_done_without(house: House, folder: Path) -> None:
    call = house.started("-W", "64", "-H", "64", "--steps", "900", "-o", "k.png", "a cat")
    house.until_busy(True)
    os.kill(house.pid(), signal.SIGKILL)
    _, told = call.communicate(timeout=120)
    assert told == b"Note: the worker ended before the picture was drawn; drawing without it\n"
    assert (call.returncode, Path("k.png").exists()) == (0, True)
    assert house.states() == []  # and the socket that it left is gone
    assert not list(house.runtime.rglob("*.sock"))


def test_a_worker_without_calls_ends(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir(mode=0o700)
    path = folder / "a.sock"
    line = [sys.executable, "-P", "-m", "txt2img.cli.serve", str(path), "1"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(line, env=variables, timeout=120, check=False).returncode == 0
    assert not path.exists()


def test_other_files_of_the_program_are_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    name = wire.name_of(["default", None])
    assert wire.name_of(["default", None]) == name != wire.name_of(["default", "cuda"])
    monkeypatch.setattr(wire, "state_of_source", lambda: "another")
    assert wire.name_of(["default", None]) != name


def test_folders_that_others_can_enter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "link"):
        with pytest.raises(wire.NotOurs):
            wire.check_private(tmp_path / name)


def test_the_socket_is_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with wire.listen(path), wire.connect(path) as connection:
        assert path.stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        with pytest.raises(wire.NotOurs):
            wire.check_peer(connection)


def test_messages_carry_any_text_and_open_files() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        message = {"do": "run", "arguments": ["ä\udcff" * 100_000]}
        thread = threading.Thread(target=wire.send, args=(ours, message, (0, 1, 2, 2)))
        thread.start()
        came, files = wire.receive(theirs, 4)
        thread.join()
        assert came == message
        assert len(files) == 4
        for file in files:
            os.close(file)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (["a cat"], None),
        (["a cat", "--warm", "10m"], 600),
        (["--warm=90s", "a cat"], 90),
        (["--warm", "1h", "--no-warm", "a cat"], None),
        (["info", "--warm", "1h"], None),
        (["a", "--warm", "soon"], None),
        (["--", "--warm", "1h"], None),
    ],
)
def test_a_worker_is_used_where_one_is_asked_for(
    line: list[str], seconds: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(warm.VARIABLE, raising=False)
    assert warm.wanted(line) == seconds


def test_commands_that_do_not_draw_are_never_handed_over() -> None:
    assert set(app.COMMANDS) - {"generate"} <= warm.OTHERS


def test_a_time_that_is_none_is_refused(command: Callable[..., object]) -> None:
    outcome = command("a cat", "--warm", "soon")
    assert outcome.code == 2  # type: ignore[attr-defined]
    assert "--warm takes a time of 1s … 24h" in outcome.err  # type: ignore[attr-defined]


def test_a_worker_that_hears_nonsense_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with wire.listen(path) as server:
        worker = serve.Worker(server, path, 60)
        threading.Thread(target=worker.hear, daemon=True).start()
        with wire.connect(path) as connection:
            connection.sendall(b"\xff" * 8)
            assert connection.recv(1) == b""
        with wire.connect(path) as connection:
            wire.send(connection, {"do": "status"})
            assert wire.receive(connection)[0]["busy"] is False
