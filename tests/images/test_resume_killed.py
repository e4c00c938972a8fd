"""A batch that is killed and run again ends as if nothing had happened; sharing loses nothing."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_process import COMMAND, environment
from tests.conftest import Command, Outcome
from tests.support import doomed
from txt2img.images import image_file

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


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """What `whole` drew for the first test that asked, for all."""
    return {}


@pytest.fixture
def whole(line: Line, drawn: dict[str, bytes]) -> dict[str, bytes]:
    """What one undisturbed run leaves, which needs no --resume."""
    if not drawn:
        finish(*(word for word in line if word != "--resume"), "-o", "whole/")
        drawn |= left("whole")
    assert len(drawn) == PICTURES and len(set(drawn.values())) == PICTURES - 1
    return dict(drawn)


def finish(*arguments: str) -> list[str]:
    """Run a command line to its end; gives the paths it says.

    In a process like those that are killed: on some processors the last bits of a picture depend
    on the number of threads.
    """
    process = doomed.start(arguments, "said")
    process.join()
    assert process.exitcode == 0
    return Path("said").read_text().splitlines()


@pytest.fixture(params=["cpu", "card"])
def place(
    request: pytest.FixtureRequest, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is written before the next picture is begun, or encoded meanwhile."""
    if request.param == "card":
        monkeypatch.setenv(doomed.ON_CARD, "1")


def left(folder: str) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def sound(folder: str) -> int:
    """How many pictures there are, each checked: it opens, and says how it was made."""
    paths = list(Path(folder).glob("*.png"))
    for path in paths:
        with Image.open(path) as image:
            image.load()
        found = image_file.read(path)
        assert found.request is not None
        assert found.pixels_sha256
    return len(paths)


@pytest.mark.usefixtures("place")
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


@pytest.mark.usefixtures("place")
def test_two_processes_lose_and_double_nothing(line: Line, whole: dict[str, bytes]) -> None:
    processes = [doomed.start((*line, "-o", "new/"), f"out-{i}") for i in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert left("new") == whole
    said = [Path(f"out-{i}").read_text().splitlines() for i in range(2)]
    assert sorted(said[0] + said[1]) == sorted(f"new/{name}" for name in whole)


@pytest.mark.usefixtures("place")
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


@pytest.mark.usefixtures("place")
def test_shards_are_together_the_whole(line: Line, whole: dict[str, bytes]) -> None:
    plain = [word for word in line if word != "--resume"]
    counts = []
    for part in (3, 1, 2):
        said = finish(*plain, "-o", "new/", "--shard", f"{part}/3", "--batch-size", "2")
        counts.append(len(said))
    assert counts == [2, 3, 3]
    assert left("new") == whole


def launched(arguments: Line, world: int = 2, place: dict[str, str] | None = None) -> list[str]:
    """Run a command line as a launcher's processes; gives what they say, the first one's first."""
    processes = []
    for rank in range(world):
        own = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        processes.append(doomed.start(arguments, f"out-{rank}", None, own | (place or {})))
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} == {0}
    return [Path(f"out-{rank}").read_text() for rank in range(world)]


def test_a_launchers_processes_are_together_the_whole(line: Line, whole: dict[str, bytes]) -> None:
    plain = tuple(word for word in line if word != "--resume")
    said = [text.splitlines() for text in launched((*plain, "-o", "new/"))]
    assert [len(paths) for paths in said] == [PICTURES // 2] * 2
    assert sorted(said[0] + said[1]) == sorted(f"new/{name}" for name in whole)
    assert left("new") == whole


SBATCH = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # its own shell's
SRUN = [
    {**SBATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": f"{rank}"}
    for rank in range(2)
]
ARRAYS = {
    "slurm": [
        {f"SLURM_ARRAY_TASK_{key}": value for key, value in job.items()} | SBATCH
        for job in (
            {"ID": "3", "COUNT": "2", "MIN": "3", "MAX": "5", "STEP": "2"},
            {"ID": "5", "COUNT": "2", "MIN": "3", "MAX": "5", "STEP": "2"},
        )
    ],
    "kubernetes": [{"JOB_COMPLETION_INDEX": index, "JOB_COMPLETIONS": "2"} for index in ("0", "1")],
    "aws": [
        {"AWS_BATCH_JOB_ARRAY_INDEX": index, "AWS_BATCH_JOB_ARRAY_SIZE": "2"}
        for index in ("0", "1")
    ],
}


@pytest.mark.parametrize("system", ["srun", *ARRAYS])
def test_jobs_of_a_cluster_are_together_the_whole(
    line: Line, whole: dict[str, bytes], system: str
) -> None:
    jobs = ARRAYS.get(system, SRUN)
    words = (*(word for word in line if word != "--resume"), "-o", "new/")
    words += () if system == "srun" else ("--shard", "auto")
    processes = [doomed.start(words, f"out-{i}", None, job) for i, job in enumerate(jobs)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    said = [Path(f"out-{i}").read_text().splitlines() for i in range(2)]
    assert [len(paths) for paths in said] == [PICTURES // 2] * 2
    assert left("new") == whole


def test_the_shell_of_sbatch_draws_all(line: Line, whole: dict[str, bytes]) -> None:
    process = doomed.start((*line, "-o", "new/"), "out", None, SBATCH)
    process.join()
    assert process.exitcode == 0 and left("new") == whole


def test_tasks_of_srun_say_that_they_share_the_work(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SRUN[0].items():
        monkeypatch.setenv(name, value)
    line = ("apple", "--seed", "1", "--count", "3", "--dry-run")
    assert "srun's 2 processes draw a part of the pictures each" in command(*line).err
    monkeypatch.delenv("SLURM_STEP_ID")
    assert "srun" not in command(*line).err


def test_tasks_of_srun_meet_where_they_are_told(line: Line) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    words = ("a cat", *line[:10], "--sweep", "cfg=1,2", "-o", "new/")
    processes = [doomed.start(words, f"out-{i}", None, {**SRUN[i], **place}) for i in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    rows = Path("new/sheet.csv").read_text().splitlines()
    assert len(rows) == 1 + 2  # of one seed, which no one gave: both tasks know it


def test_one_picture_is_drawn_by_the_first_process(line: Line) -> None:
    arguments = ("a cat", *line[:10], "--seed", "1", "-q", "-o", "x.png")
    assert launched(arguments) == ["x.png\n", ""]


def test_processes_that_meet_agree_on_a_seed_and_draw_one_sheet(line: Line) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    said = launched(("a cat", *line[:10], "--sweep", "cfg=1,2,3", "-o", "new/"), 2, place)
    assert [text.count("\n") for text in said] == [4, 1]  # two pictures, sheet and table; one
    pictures = sorted(path for path in Path("new").glob("a-cat-*.png"))
    requests = [request for path in pictures if (request := image_file.read(path).request)]
    assert len({request.seed for request in requests}) == 1
    assert sorted(request.cfg or 0 for request in requests) == [1, 2, 3]
    rows = Path("new/sheet.csv").read_text().splitlines()
    assert sorted(row.split(",")[0] for row in rows[1:]) == [path.name for path in pictures]


def test_processes_that_cannot_meet_need_a_seed(
    draw: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    outcome: Outcome = draw("x", "--count", "2")
    assert outcome.code == 2 and "a launch needs a known seed" in outcome.err


def test_a_rehearsal_is_said_by_the_first_process(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    for rank in ("0", "1"):
        for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, value)
        outcome: Outcome = command("apple", "--seed", "1", "--count", "3", "--dry-run")
        said.append((outcome.code, outcome.out.count("\n"), outcome.err.count("\n")))
    assert said == [(0, 3, 3), (0, 0, 0)]


def test_one_process_keeps_the_preview(draw: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("x", "--seed", "1", "--count", "2", "--preview-file", "now.png", "--preview-every", "1")
    for rank, kept in (("1", False), ("0", True)):
        for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, value)
        outcome: Outcome = draw(*line)
        assert (outcome.code, outcome.out.count("\n")) == (0, 1)
        assert Path("now.png").exists() is kept


def test_what_cannot_be_said_ends_a_run_and_costs_no_picture(line: Line) -> None:
    process = doomed.start((*line, "-o", "new/"), "/dev/full")
    process.join()
    assert process.exitcode == 1
    assert sound("new") == len(left("new")) == 1


def test_pictures_that_are_there_are_told(
    line: Line, whole: dict[str, bytes], command: Command
) -> None:
    Path("whole").mkdir(exist_ok=True)
    for name, content in whole.items():
        Path("whole", "mine.png" if name == "a-cat-1.png" else name).write_bytes(content)
    Path("whole/a-cat-1.png").unlink(missing_ok=True)  # "mine" is known by what it says
    Path("whole/wide-1.png").unlink()
    loud = [word for word in line if word != "-q"]
    outcome = command(*loud, "-o", "whole/")
    assert outcome.out == "whole/wide-1.png\n"
    assert outcome.err == "7 of 8 pictures are there already\n"


def test_a_drawn_seed_cannot_be_resumed(draw: Command) -> None:
    for option in (("--resume",), ("--shard", "1/2")):
        outcome: Outcome = draw("x", *option)
        assert outcome.code == 2 and "give --seed" in outcome.err


FORTY = 40
MOMENTS = 10
SLOWEST_SECONDS = 600.0  # until a process of a batch listens to signals


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_batch_of_forty_stopped_at_ten_moments_can_go_on(
    line: Line, number: signal.Signals, count: int
) -> None:
    chance = random.Random(number * 10 + count)
    forty = (
        "a {cat|dog}",
        *line[:10],
        "--seed",
        "1",
        "--count",
        str(FORTY),
        "--wildcards",
        "lists",
    )
    finish(*forty, "-q", "-o", "whole/")
    whole = left("whole")
    assert len(whole) == FORTY
    arguments = (*forty, "-q", "--resume", "-o", "new/")
    codes, seen = set(), set()
    running = [begun(arguments, i) for i in range(count)]
    for moment in range(MOMENTS):
        victim = moment % count
        await_pictures(min(sound("new") + chance.randint(0, 6), FORTY), running[victim])
        time.sleep(chance.uniform(0, 0.2))
        for _ in range(1 if number == signal.SIGKILL else chance.choice((1, 2))):
            with suppress(ProcessLookupError):
                os.kill(running[victim].pid or 0, number)
            time.sleep(chance.uniform(0, 0.05))
        running[victim].join()
        codes.add(running[victim].exitcode)
        seen.add(sound("new"))
        running[victim] = begun(arguments, victim)
    for process in running:
        process.join()
    stopped = -number if number == signal.SIGKILL else 128 + number
    assert stopped in codes and codes <= {stopped, 0}
    assert len(seen) > 3  # it was stopped with many a number of pictures there
    assert sound("new") == FORTY
    assert finish(*arguments) == []  # all is done; what lay about is swept
    assert left("new") == whole


def await_pictures(wanted: int, process: ForkServerProcess) -> None:
    """Wait for so many pictures, or the end of a process; all are sound at every moment."""
    while sound("new") < wanted and process.is_alive():
        time.sleep(0.01)


def begun(arguments: Line, which: int) -> ForkServerProcess:
    """A process that runs a command line and already listens to signals."""
    out = Path(f"out-{which}")
    out.unlink(missing_ok=True)
    process = doomed.start(arguments, str(out))
    end = time.monotonic() + SLOWEST_SECONDS
    while not out.exists() or not Path("new").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.1)
    return process


def begin_from(folder: Path, count: int) -> tuple[str, ...]:
    """A folder of small pictures and one of masks, as options of a command line."""
    chance = random.Random(count)
    for name in ("shots", "masks"):
        (folder / name).mkdir()
    for i in range(count):
        picture = Image.frombytes("RGB", (8, 8), chance.randbytes(192)).resize((64, 64))
        picture.save(folder / "shots" / f"shot{i}.png")
        mask = Image.new("L", (64, 64), 0)
        left, up = chance.randrange(0, 40, 4), chance.randrange(0, 40, 4)
        mask.paste(255, (left, up, left + 24, up + 24))
        mask.save(folder / "masks" / f"shot{i}.png")
    return ("--image", "shots", "--mask", "masks", "--mask-blur", "2", "--strength", "1")


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_forty_pictures_with_masks_killed_ten_times_can_go_on(
    line: Line, folder: Path, shards: int
) -> None:
    started = begin_from(folder, FORTY)
    forty = ("a cat", *line[:10], "--seed", "1", "-q", *started)
    finish(*forty, "-o", "whole/")
    whole = left("whole")
    assert sorted(whole) == sorted(f"shot{i}.png" for i in range(FORTY))
    assert len(set(whole.values())) == FORTY
    chance, seen = random.Random(shards), set()
    resumed = (*forty, "--resume", "-o", "new/")
    parts = [(*resumed, "--shard", f"{i + 1}/{shards}") for i in range(shards)]
    for kill in range(MOMENTS // shards):
        calls = chance.randrange(kill % 4, 36)
        processes = [doomed.start(part, f"out-{i}", calls) for i, part in enumerate(parts)]
        for process in processes:
            process.join()
        assert {process.exitcode for process in processes} == {-signal.SIGKILL}
        seen.add(sound("new"))
    assert len(seen) > 3 and max(seen) < FORTY
    last = [doomed.start(part, f"out-{i}") for i, part in enumerate(parts)]
    for process in last:
        process.join()
    assert finish(*resumed) == []  # all is done; what lay about is swept
    assert left("new") == whole


@pytest.mark.slow
def test_real_processes_killed_at_random_moments(line: Line, whole: dict[str, bytes]) -> None:
    chance = random.Random(1)
    arguments = [*COMMAND, *line, "-o", "new/"]
    for _ in range(3):
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


@pytest.mark.slow
def test_accelerate_launch_shares_a_batch(line: Line, whole: dict[str, bytes]) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launcher += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "txt2img"]
    plain = (word for word in line if word != "--resume")
    done = subprocess.run(
        [*launcher, *plain, "-o", "new/"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == sorted(f"new/{name}" for name in whole)
    assert left("new") == whole
