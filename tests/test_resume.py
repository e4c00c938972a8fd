"""A batch that is killed and run again ends as if nothing had happened; sharing loses nothing."""

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import doomed
import pytest
from conftest import Command, Outcome
from PIL import Image
from test_cli_process import COMMAND, environment

from txt2img import png

LINES = "a cat\na cat --cfg 3\na cat\n{a|the} dog --count 3\nwide -W 72\n__colour__ sky --seed 9\n"
PICTURES = 8
Line = tuple[str, ...]


@pytest.fixture
def line(folder: Path, sd1_folder: Path) -> Line:
    """A command line that draws a batch of eight: names that collide, choices, equal pictures."""
    Path("lists").mkdir()
    Path("lists/colour.txt").write_text("red\nblue\n")
    Path("p.txt").write_text(LINES)
    model = ("-m", str(sd1_folder), "-W", "64", "-H", "64", "--steps", "1", "--device", "cpu")
    return (*model, "--prompts", "p.txt", "--seed", "1", "--wildcards", "lists", "--resume", "-q")


@pytest.fixture
def whole(line: Line) -> dict[str, bytes]:
    """What one undisturbed run leaves, which needs no --resume."""
    finish(*(word for word in line if word != "--resume"), "-o", "whole/")
    found = left("whole")
    assert len(found) == PICTURES and len(set(found.values())) == PICTURES - 1
    return found


def finish(*arguments: str) -> list[str]:
    """Run a command line to its end; gives the paths it says.

    In a process like those that are killed: on some processors the last bits of a picture depend
    on the number of threads.
    """
    process = doomed.start(arguments, "said")
    process.join()
    assert process.exitcode == 0
    return Path("said").read_text().splitlines()


def left(folder: str) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def sound(folder: str) -> int:
    """How many pictures there are, each checked: it opens, and says how it was made."""
    paths = list(Path(folder).glob("*.png"))
    for path in paths:
        with Image.open(path) as image:
            image.load()
        found = png.read(path)
        assert found.request is not None
        assert found.pixels_sha256
    return len(paths)


def test_killed_at_any_moment_a_batch_can_go_on(line: Line, whole: dict[str, bytes]) -> None:
    seen, killed = set(), 0
    # Before each kind of dealing, with other pictures done; at 11 its latent is of no use.
    for calls in (0, 6, 2, 7, 11, 5, 12):
        process = doomed.start((*line, "-o", "new/"), "out", calls)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if Path("new").exists():
            seen.add(sound("new"))
    assert killed == 7 and len(seen) > 3  # it died at different pictures
    finish(*line, "-o", "new/")
    assert left("new") == whole
    assert finish(*line, "-o", "new/") == []
    assert left("new") == whole


def test_two_processes_lose_and_double_nothing(line: Line, whole: dict[str, bytes]) -> None:
    processes = [doomed.start((*line, "-o", "new/"), f"out-{i}") for i in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert left("new") == whole
    said = [Path(f"out-{i}").read_text().splitlines() for i in range(2)]
    assert sorted(said[0] + said[1]) == sorted(f"new/{name}" for name in whole)


def test_what_a_killed_process_had_claimed_another_draws(
    line: Line, whole: dict[str, bytes]
) -> None:
    victim = doomed.start((*line, "-o", "new/"), "out-1", 9)
    other = doomed.start((*line, "-o", "new/"), "out-2")
    victim.join()
    other.join()
    assert other.exitcode == 0
    assert sound("new") == PICTURES
    assert dict(files("new")) == whole


def files(folder: str) -> Iterator[tuple[str, bytes]]:
    """The files of a folder that are pictures."""
    for path in Path(folder).glob("*.png"):
        yield path.name, path.read_bytes()


def test_shards_are_together_the_whole(line: Line, whole: dict[str, bytes]) -> None:
    plain = [word for word in line if word != "--resume"]
    counts = []
    for part in (3, 1, 2):
        said = finish(*plain, "-o", "new/", "--shard", f"{part}/3", "--batch-size", "2")
        counts.append(len(said))
    assert counts == [2, 3, 3]
    assert left("new") == whole


def test_pictures_that_are_there_are_told(
    line: Line, whole: dict[str, bytes], command: Command
) -> None:
    Path("whole/a-cat-1.png").rename("whole/mine.png")  # known by what it says
    Path("whole/wide-1.png").unlink()
    loud = [word for word in line if word != "-q"]
    outcome = command(*loud, "-o", "whole/")
    assert outcome.out == "whole/wide-1.png\n"
    assert outcome.err == "7 of 8 pictures are there already\n"


def test_a_drawn_seed_cannot_be_resumed(draw: Command) -> None:
    for option in (("--resume",), ("--shard", "1/2")):
        outcome: Outcome = draw("x", *option)
        assert outcome.code == 2 and "give --seed" in outcome.err


@pytest.mark.slow
def test_real_processes_killed_at_random_moments(
    line: Line, whole: dict[str, bytes], command: Command
) -> None:
    chance = random.Random()
    arguments = [*COMMAND, *line, "-o", "new/"]
    for _ in range(5):
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
        ) as process:
            assert process.stdout
            process.stdout.readline()  # one picture at least; then at any moment
            time.sleep(chance.uniform(0, 0.2))
            process.kill()
        assert sound("new") > 0
    assert subprocess.run(arguments, env=environment(), check=False).returncode == 0
    assert left("new") == whole
