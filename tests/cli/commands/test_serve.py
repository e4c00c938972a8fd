"""txt2img serve: its start, its end, and mistakes in its options."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.conftest import Command

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")


def test_it_serves_until_a_signal_and_answers_what_it_began(sd1_folder: Path) -> None:
    import requests

    options = ("-m", str(sd1_folder), "-W", "64", "-H", "64", "--port", "0", "--json")
    program = (sys.executable, "-m", "txt2img", "serve", *options)
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None and process.stdout is not None
        line = process.stderr.readline()
        assert line.startswith("Serving tiny-sd1 at http://127.0.0.1:")
        url = line.split()[-1]
        answers = []
        drawing = threading.Thread(
            target=lambda: answers.append(
                requests.post(f"{url}v1/images/generations", json=VALUES, timeout=60)
            )
        )
        drawing.start()
        while not requests.get(f"{url}sdapi/v1/options", timeout=10).ok or not is_drawing(url):
            pass
        process.send_signal(signal.SIGTERM)
        drawing.join()
        assert answers[0].status_code == 200
        assert process.wait(timeout=60) == 0
        records = [json.loads(row) for row in process.stdout.read().splitlines()]
        assert process.stderr.read() == ""
    asked = {"method": "POST", "route": "/v1/images/generations", "status": 200}
    assert asked in [without(record) for record in records]


VALUES = {"prompt": "a", "steps": 40}


def without(record: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in record.items() if name != "seconds"}


def is_drawing(url: str) -> bool:
    import requests

    return "txt2img_jobs_running 1" in requests.get(f"{url}metrics", timeout=10).text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--port", "70000"), "--port must be"),
        (("--port", "http"), "whole number"),
        (("--queue", "0"), "at least 1"),
        (("--cors-origin", "*"), "name one site"),
        (("--api-key-file", "missing.txt"), "missing.txt"),
        (("--api-key-file", "short.txt"), "8 characters"),
        (("--host", "300.0.0.1", "--port", "0"), "cannot listen on"),
        (("-m", "no-such-model"), "no-such-model"),
        (("--lora-dir", "nowhere"), "no folder"),
    ],
)
def test_mistakes_are_told_before_anything_listens(
    command: Command, folder: Path, options: tuple[str, ...], says: str
) -> None:
    (folder / "short.txt").write_text("# a comment\n\nabc\n")
    outcome = command("serve", *options)
    assert outcome.code in (1, 2)
    assert outcome.err.startswith("Error: ") and says in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_port_in_use_is_told(command: Command) -> None:
    from txt2img.server import listen

    with listen.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        outcome = command("serve", "--port", str(port))
    assert outcome.code == 2
    assert f"port {port}: address already in use" in outcome.err


def test_without_its_libraries_it_says_how_to_get_them(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from txt2img.cli.commands import serve

    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    outcome = command("serve")
    assert outcome.code == 1
    assert "install" in outcome.err and "uvicorn" in outcome.err
