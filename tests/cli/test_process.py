"""What only a process of its own can show: streams that are gone, folders that are gone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support import picture_files
from txt2img.images import image_file
from txt2img.images.record import Origin
from txt2img.request.request import Request

ROOT = Path(__file__).parent.parent.parent
COMMAND = (sys.executable, "-m", "txt2img")


def environment(**more: str) -> dict[str, str]:
    """Variables with which `python -m txt2img` is found from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture
def picture(folder: Path) -> str:
    """A picture with a prompt that not all encodings have."""
    picture_files.save(
        Image.new("RGB", (8, 8)),
        Path("x.png"),
        Request("ä 苹", seed=1),
        Origin("m", "0"),
    )
    return "x.png"


def shell(line: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A line for the shell, with the command as $T."""
    variables = environment(T=" ".join(COMMAND), **more)
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        env=variables,
        timeout=300,
        check=False,
    )


def test_a_reader_that_leaves_is_no_error_to_talk_about(picture: str) -> None:
    done = shell(f"$T info {' '.join([picture] * 3000)} | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.splitlines() == ["x.png: a PNG picture, 8x8", "1"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("--prompts p.txt --seed 1 --dry-run", 0),
        ("--prompts p.txt --seed 1 --steps 1 -W 64 -H 64 -o art/ -m $M --no-keep-alive --json", 1),
        ("a --seed 1 --steps 1 -W 64 -H 64 -m $M --no-keep-alive -o -", 0),
    ],
)
def test_a_run_stops_when_its_reader_leaves(
    folder: Path, sd1_folder: Path, line: str, kept: int
) -> None:
    Path("p.txt").write_text("a cat\n" * 300)
    done = shell(f"$T {line} | true; echo ${{PIPESTATUS[0]}}", M=str(sd1_folder))
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert len(list(folder.glob("art/*"))) == kept


def test_results_that_cannot_be_written_are_an_error(picture: str) -> None:
    done = shell(f"$T info {picture} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write to standard output: no space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(picture: str, closed: str) -> None:
    assert shell(f"$T info {picture} {closed}").returncode == 0


def test_a_picture_has_to_go_somewhere() -> None:
    done = shell("$T cat -o - --dry-run >&-")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: -o - writes to standard output, which is closed")


def test_a_closed_standard_error_does_no_harm(picture: str) -> None:
    assert shell("$T info no.png 2> /dev/full").returncode == 1


@pytest.mark.parametrize("variables", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}])
def test_any_encoding_can_say_any_prompt(picture: str, variables: dict[str, str]) -> None:
    done = shell(f"$T info {picture}", **variables)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_deleted_current_folder_is_reported(folder: Path) -> None:
    done = shell("mkdir gone && cd gone && rmdir ../gone && $T info x.png")
    assert done.returncode == 2
    assert done.stderr == "Error: the current folder is gone; cd to one that exists\n"


def test_standard_input_is_left_alone(picture: str) -> None:
    assert shell(f"printf 'a\\nb\\n' | ($T info {picture} > out.txt; cat)").stdout == "a\nb\n"


THREE_SIGNALS = """
import signal
from txt2img.cli.terminal.signals import STOP, Stopped
STOP.listen()
STOP.finishing = True
signal.raise_signal(signal.SIGINT)
print("finishing", flush=True)
try:
    signal.raise_signal(signal.SIGINT)
except Stopped:
    print("stopping", flush=True)
    signal.raise_signal(signal.{})
print("never")
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_third_signal_ends_any_process(name: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREE_SIGNALS.format(name)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (code, "finishing\nstopping\n")


@pytest.mark.slow
def test_an_interrupt_ends_a_run_soon(folder: Path, sd1_folder: Path) -> None:
    arguments = ("-m", str(sd1_folder), "-W", "64", "-H", "64", "--steps", "3", "--count", "1000")
    with subprocess.Popen(
        [*COMMAND, "x", "--seed", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == "x-1.png\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    finishing = "Finishing the picture; once more stops at once.\n"
    assert err.removeprefix(finishing) == "Stopped; pictures that were finished are kept.\n"
    names = [path.name for path in folder.iterdir()]
    assert "x-1.png" in names and all(name.endswith(".png") for name in names)
    assert all(image_file.read(folder / name).request for name in names)
