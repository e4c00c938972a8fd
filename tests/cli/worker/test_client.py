"""The client finds a worker and talks to it; no model is loaded, most workers are threads."""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Command
from txt2img.cli import app, daemon, registry
from txt2img.cli.commands.worker import ask
from txt2img.cli.terminal.signals import Stopped, StopSignal
from txt2img.cli.worker import client, protocol
from txt2img.system import launcher

ROOT = Path(__file__).parent.parent.parent.parent
PATIENCE = 120.0  # seconds, for machines that do other things too


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def private() -> Iterator[Path]:
    """A folder for sockets, whose names must be short."""
    with tempfile.TemporaryDirectory(prefix="t2i-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def worker(private: Path) -> Iterator[Path]:
    """The socket of a worker that listens in a thread, and never carries anything out."""
    path = private / "w.sock"
    with protocol.listen(path) as server:
        thread = threading.Thread(target=daemon.Worker(server, 60).accept_loop)
        thread.start()
        yield path
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def process(path: Path, idle: int) -> "subprocess.Popen[bytes]":
    """A worker process as the client starts it; it imports no torch before its first job."""
    line = [sys.executable, "-P", "-m", "txt2img.cli.daemon", str(path), str(idle)]
    return subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)})


def free(path: Path) -> bool:
    """Whether the worker there has nothing to do."""
    state = ask(path, "status")
    return state is not None and state["busy"] is False


def test_a_worker_without_calls_ends(private: Path) -> None:
    assert process(private / "w.sock", 1).wait(PATIENCE) == 0
    assert not list(private.iterdir())


def test_one_worker_serves_a_socket_until_it_is_stopped(private: Path) -> None:
    path = private / "w.sock"
    first = process(path, 600)
    until(path.exists)
    assert process(path, 600).wait(PATIENCE) == 0  # another is there, and goes on
    state = ask(path, "stop")
    assert state is not None
    assert (state["pid"], state["calls"], state["busy"]) == (first.pid, 0, False)
    assert first.wait(PATIENCE) == 0
    assert not list(private.iterdir())


def test_a_worker_ends_when_it_is_terminated_and_its_socket_goes(private: Path) -> None:
    path = private / "w.sock"
    running = process(path, 600)
    until(path.exists)
    assert free(path)
    running.terminate()
    assert running.wait(PATIENCE) == 0
    assert not list(private.iterdir())


def test_the_socket_of_a_killed_worker_is_replaced(private: Path) -> None:
    path = private / "w.sock"
    running = process(path, 600)
    until(path.exists)
    running.kill()
    running.wait(PATIENCE)
    assert path.exists()
    connection = client.connect_or_start(path, 600)  # starts another
    assert connection is not None
    with connection:
        assert client.connect_or_start(path, 600) is None  # which works for that call now
    until(lambda: free(path))
    state = ask(path, "stop")
    assert state is not None and state["pid"] != running.pid
    assert os.waitpid(int(str(state["pid"])), 0)[1] == 0
    assert not path.exists()


def test_status_forgets_a_worker_that_was_killed(private: Path) -> None:
    path = private / "w.sock"
    protocol.listen(path).close()
    assert ask(path, "status") is None
    assert not path.exists()


def test_a_client_that_leaves_before_it_sends_a_job_is_forgotten(worker: Path) -> None:
    for waits in (True, False):
        with protocol.connect(worker) as connection:
            protocol.send(connection, {"do": "run"})
            if waits:
                assert protocol.receive(connection)[0] == {"go": True, "ending": False}
                assert not free(worker)
        until(lambda: free(worker))


def test_half_a_job_leaves_no_file_open(worker: Path) -> None:
    reader, writer = os.pipe()
    with protocol.connect(worker) as connection:
        protocol.send(connection, {"do": "run"})
        protocol.receive(connection)
        socket.send_fds(connection, [b"\0" * 7], [writer] * 4)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], PATIENCE)
    assert ready and os.read(reader, 1) == b""  # nobody holds its other end any more
    os.close(reader)
    until(lambda: free(worker))


def test_silent_clients_do_not_block_others(worker: Path) -> None:
    with protocol.connect(worker), protocol.connect(worker):
        assert free(worker)


def test_a_worker_survives_invalid_messages(worker: Path) -> None:
    for nonsense in (b"\xff" * 8, b"\0" * 7 + b"\2[]", b"\0" * 7 + b"\2{}"):
        with protocol.connect(worker) as connection:
            connection.sendall(nonsense)
            assert connection.recv(1) == b""
    assert free(worker)


def test_another_users_client_is_not_answered(
    worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: socket.socket) -> None:
        raise protocol.WrongOwner

    monkeypatch.setattr(protocol, "check_peer", refuse)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.connect(str(worker))
        assert other.recv(1) == b""


def test_only_this_users_processes_are_peers(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = private / "s"
    with protocol.listen(path), protocol.connect(path) as connection:
        assert path.stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        with pytest.raises(protocol.WrongOwner):
            protocol.check_peer(connection)


def test_folders_that_others_can_enter_are_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("open", "link"):
        with pytest.raises(protocol.WrongOwner):
            protocol.check_private(tmp_path / name)


def test_the_folder_for_sockets_is_this_users_alone(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
    assert protocol.folder().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private / "none"))
    monkeypatch.setenv("TMPDIR", str(private))
    assert protocol.folder().parent == private


def test_messages_carry_any_text_and_open_files() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        message = {"do": "run", "arguments": ["ä\udcff" * 100_000]}
        thread = threading.Thread(target=protocol.send, args=(ours, message, (0, 1, 2, 2)))
        thread.start()
        came, files = protocol.receive(theirs, 4)
        thread.join()
        assert came == message
        assert len(files) == 4
        for file in files:
            os.close(file)


def test_changed_source_files_need_another_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    name = protocol.socket_name("default")
    assert protocol.socket_name("default") == name != protocol.socket_name("sd15")
    monkeypatch.setenv("OMP_NUM_THREADS", "77")  # read once, at a process's start
    assert (other := protocol.socket_name("default")) != name
    monkeypatch.setenv("COLUMNS", "77")
    assert protocol.socket_name("default") == other
    monkeypatch.setattr(protocol, "code_fingerprint", lambda: "another")
    assert protocol.socket_name("default") != other
    assert daemon.code_changed("the one before")


def dying(path: Path, *last: dict[str, object]) -> threading.Thread:
    """A worker that takes a job, sends messages and dies."""
    server = protocol.listen(path)

    def take() -> None:
        with server, server.accept()[0] as connection:
            protocol.receive(connection)
            protocol.send(connection, {"go": True})
            for file in protocol.receive(connection, 4)[1]:
                os.close(file)
            for message in last:
                protocol.send(connection, message)

    thread = threading.Thread(target=take)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("last", "code", "message"),
    [
        ([], None, client.DIED),
        ([{"touched": True}], 1, client.LOST),
        ([{"touched": True}, {"code": 3}], 3, ""),
    ],
)
def test_a_worker_that_dies_is_replaced_if_it_used_no_stream(
    last: list[dict[str, object]],
    code: int | None,
    message: str,
    private: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    thread = dying(private / "w.sock", *last)
    assert client.Call(["a cat"], "default", 60).run(private / "w.sock") == code
    thread.join()
    assert capfd.readouterr().err.strip() == message
    assert signal.getsignal(signal.SIGINT) == handler


def test_a_signal_before_the_job_is_sent_stops_the_call(private: Path) -> None:
    call = client.Call(["a cat"], "default", 60)
    with pytest.raises(Stopped) as stopped:
        call.forward_signal(signal.SIGTERM, None)
    assert stopped.value.code == 143


def test_force_next_stops_at_the_next_signal_and_never_exits() -> None:
    stop = StopSignal()
    stop.is_daemon = stop.finishing = True
    stop.force_next()
    with pytest.raises(Stopped):
        stop.take(signal.SIGTERM, None)
    for _ in range(3):
        stop.take(signal.SIGTERM, None)


def test_ignored_signals_stop_nothing() -> None:
    stop = StopSignal()
    stop.ignore()
    stop.take(signal.SIGINT, None)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        (["a cat"], None),
        (["a cat", "--keep-alive", "10m"], 600),
        (["--keep-alive=90s", "a cat"], 90),
        (["a cat", "--warm", "10m"], 600),  # as it was once called
        (["replay", "x.png", "--keep-alive", "1h"], 3600),
        (["--keep-alive", "1h", "--no-keep-alive", "a cat"], None),
        (["--warm", "1h", "--no-warm", "a cat"], None),
        (["--keep-alive", "1h", "--dry-run", "a cat"], None),
        (["info", "--keep-alive", "1h"], None),
        (["a", "--keep-alive", "soon"], None),
        (["--", "--keep-alive", "1h"], None),
        (["--profile", "fast", "a cat"], 300),
        (["--profile", "none", "a cat"], None),
    ],
)
def test_a_worker_is_used_where_one_is_asked_for(
    line: list[str], seconds: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[profiles.fast]\nwarm = "5m"\n')
    monkeypatch.setenv("TXT2IMG_CONFIG", str(config))
    monkeypatch.delenv(client.VARIABLE, raising=False)
    assert client.idle_seconds(line) == seconds
    if line[0] != "info" and not {"--no-keep-alive", "--no-warm", "--dry-run"} & set(line):
        monkeypatch.setenv(client.VARIABLE, "7s")
        assert client.idle_seconds(["a cat"]) == 7
        monkeypatch.setenv("RANK", "1")
        assert client.idle_seconds(line) is None


def test_processes_of_a_launch_and_completions_use_no_worker() -> None:
    ranks = {rank for rank, _, _ in launcher.VARIABLES}
    assert {app.COMPLETE, *ranks} == client.ENV_WITHOUT_WORKER


def test_commands_that_do_not_draw_use_no_worker() -> None:
    assert {*registry.NAMES} - {"generate", "replay"} == client.COMMANDS_WITHOUT_WORKER


@pytest.mark.parametrize(
    ("line", "model"),
    [
        (["a cat"], "default"),
        (["a cat", "-m", "sd15"], "sd15"),
        (["a cat", "-msd15"], "sd15"),
        (["--model=sd15", "a cat"], "sd15"),
        (["a cat", "-m", "a/../b.safetensors"], "{here}/b.safetensors"),
    ],
)
def test_a_model_has_one_name_from_every_folder(line: list[str], model: str, folder: Path) -> None:
    Path("b.safetensors").touch()
    Path("a").mkdir()
    assert client.model_of(line) == model.format(here=os.path.realpath(folder))


def test_a_system_without_unix_sockets_is_reported(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HAS_SOCKETS", False)
    assert client.run_in_worker(["a cat", "--keep-alive", "1m"]) is None
    assert capfd.readouterr().err.startswith("Note: this system has no Unix sockets")
    assert app.run(["worker", "status"]) == 2


def test_a_folder_open_to_others_is_reported_and_not_used(
    private: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
    (private / "txt2img").mkdir(mode=0o755)
    assert client.run_in_worker(["a cat", "--keep-alive", "1m"]) is None
    assert "is not a folder of yours alone; drawing without one" in capfd.readouterr().err


def test_an_invalid_time_is_refused(command: Command) -> None:
    outcome = command("a cat", "--keep-alive", "soon")
    assert outcome.code == 2
    assert "--keep-alive takes a time of 1s … 24h" in outcome.err


def test_there_may_be_no_worker(
    private: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
    outcome = command("worker", "status")
    assert (outcome.code, outcome.err) == (0, "No worker is running.\n")
