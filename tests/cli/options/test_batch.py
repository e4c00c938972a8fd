"""What scripts see of a batch: records, codes, streams, failures, rehearsals, sweeps."""

import csv
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_errors import nothing_in, refused
from tests.conftest import Command
from txt2img.cli.run_options import StdoutOutput
from txt2img.errors import OutOfMemory, Rejected
from txt2img.images import checks, image_file
from txt2img.images.output import Output
from txt2img.images.resume import Item
from txt2img.pipeline import batch

SMALL = ("-q", "--steps", "1")


def fail(monkeypatch: pytest.MonkeyPatch, error: Exception, when: Callable[[Item], bool]) -> None:
    """Make the drawing of some pictures fail."""
    real = batch._sample_group

    def drawn(group: list[Item], model: object, latents: object) -> object:
        if any(when(item) for item in group):
            raise error
        return real(group, model, latents)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "_sample_group", drawn)


@pytest.mark.parametrize(
    ("error", "code"), [(Rejected("no picture"), 4), (OutOfMemory("no memory"), 5)]
)
def test_a_failure_stops_a_run_unless_it_is_to_go_on(
    draw: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    fail(monkeypatch, error, lambda item: item.index == 2)
    stopped = draw("x", *SMALL, "--seed", "1", "--count", "3", "--json", "-o", "a/")
    assert stopped.code == code
    first, problem = map(json.loads, stopped.out.splitlines())
    assert first["path"] == "a/x-1.png"
    assert problem == {"error": str(error), "code": code}
    skipped = draw(
        *("x", *SMALL, "--seed", "1", "--count", "3", "--json", "-o", "b/"),
        *("--on-error", "skip", "--batch-size", "3"),
    )
    assert skipped.code == 3
    records = [json.loads(line) for line in skipped.out.splitlines()]
    assert [record.get("path") for record in records] == ["b/x-1.png", None, "b/x-3.png"]
    assert (records[1]["index"], records[1]["seed"], records[1]["code"]) == (2, 2, code)
    told = f"{batch.NOTE_SINGLE}\n" if isinstance(error, OutOfMemory) else ""
    assert skipped.err == f"{told}Error: picture 2: {error}\n"


def test_lines_that_cannot_be_are_passed_over_if_asked(draw: Command, folder: Path) -> None:
    Path("p.txt").write_text("a\nb --stepz 3\nc --sampler ddim --eta 1 --steps 1\n")
    line = ("--prompts", "p.txt", *SMALL, "--seed", "1", "-o", "new/")
    refused(draw(*line), 2, 'line 2: no option "--stepz"')
    outcome = draw(*line, "--on-error", "skip")
    assert (outcome.code, outcome.out.split()) == (3, ["new/a-1.png", "new/c-1.png"])
    assert outcome.err.startswith('Error: "p.txt" line 2: no option')


def test_a_rejected_picture_is_drawn_again_with_another_seed(
    draw: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = [1, checks.retry_seed(1, 1), checks.retry_seed(1, 2)]
    fail(monkeypatch, Rejected("no"), lambda item: item.request.seed in seeds[:2])
    line = ("x", *SMALL, "--seed", "1", "--json", "-o", "new/")
    assert draw(*line, "--retries", "1").code == 4
    outcome = draw(*line, "--retries", "2", "--resume")
    record = json.loads(outcome.out)
    assert (record["path"], record["seed"], record["first_seed"]) == ("new/x-1.png", seeds[2], 1)
    found = image_file.read(Path("new/x-1.png"))
    assert found.request and (found.request.seed, found.first_seed) == (seeds[2], 1)
    assert draw(*line, "--retries", "2", "--resume").out == ""  # it is known to be there


def test_flat_pictures_are_rejected_if_asked(
    draw: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "decode", lambda *_: [Image.new("RGB", (64, 64), "red")])
    refused(draw("x", *SMALL, "--seed", "1", "--reject", "black,flat"), 4, "one colour")
    assert draw("x", *SMALL, "--seed", "1", "--reject", "black").code == 0


def test_records_say_all_that_a_script_may_want(draw: Command) -> None:
    Path("w").mkdir()
    outcome = draw("{a|b}", *SMALL, "--seed", "5", "--json", "--wildcards", "w")
    record = json.loads(outcome.out)
    found = image_file.read(Path(record["path"]))
    assert record["prompt"] in "ab" and record["template"] == "{a|b}"
    assert record["pixels_sha256"] == found.pixels_sha256
    assert found.request and found.request.template == "{a|b}"
    assert record["seconds"] > 0 and record["index"] == 1 and len(record["id"]) == 32


def test_all_draws_every_choice_with_every_seed(draw: Command) -> None:
    Path("w").mkdir()
    Path("w/pet.txt").write_text("cat\ndog\n")
    line = ("a {red|blue} __pet__", "--seed", "5", "--wildcards", "w", "--all", "--dry-run")
    once = draw(*line)
    prompts = [row.split("\t")[-1] for row in once.out.splitlines()]
    assert prompts == ["a red cat", "a red dog", "a blue cat", "a blue dog"]
    assert "--all: 4 pictures, of every choice" in once.err
    twice = draw(*line, "--count", "2", "--json")
    rows = [json.loads(row) for row in twice.out.splitlines()]
    assert sorted((row["prompt"], row["seed"]) for row in rows) == sorted(
        (prompt, seed) for prompt in prompts for seed in (5, 6)
    )
    many = draw("{a|b}" * 14, *line[1:])
    assert many.code == 2 and "at most 10,000" in many.err
    assert draw("a", "--all", "--dry-run").code == 2


def test_without_wildcards_braces_are_literal(draw: Command) -> None:
    [path] = draw("{a|b} __c__", *SMALL, "--seed", "5").out.split()
    request = image_file.read(Path(path)).request
    assert request and (request.prompt, request.template) == ("{a|b} __c__", "")


def test_a_file_with_the_name_of_standard_output_is_not_in_the_way(folder: Path) -> None:
    (folder / "-").touch()
    StdoutOutput().check_name_free()


def test_a_picture_can_go_to_standard_output(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with StdoutOutput() as target:
        assert target.write_as(b"\x89PNG\r\n\x1a\n\0", "-") == Path("-")
    assert capfdbinary.readouterr().out == b"\x89PNG\r\n\x1a\n\0"
    assert nothing_in(folder)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("x -o - --count 2", "one picture"),
        ("x -o - --json", "nothing else"),
        ("x --resume --overwrite", "--overwrite replaces them"),
        ("x --shard 3/2", "like 2/8"),
        ("x --shard 2", "like 2/8"),
        ("x --on-error no", "stop or skip"),
        ("x --reject ugly", "choose from nan, black, flat"),
        ("x --retries 101", "0 … 100"),
        ("x --retries x", "whole number"),
        ("x --sweep-zip", "goes with --sweep"),
        ("x --sweep cfg", "OPTION=VALUES"),
        ("x --wildcards no", "no folder"),
    ],
)
def test_options_that_cannot_be_are_refused(
    command: Command, folder: Path, line: str, part: str
) -> None:
    outcome = command(*line.split())
    assert outcome.code == 2 and part in outcome.err
    assert outcome.err.count("\n") == 1
    if "--json" in line:
        assert json.loads(outcome.out)["code"] == 2
    else:
        assert outcome.out == ""
    assert nothing_in(folder)


def test_a_rehearsal_says_names_seeds_and_prompts(command: Command, folder: Path) -> None:
    Path("w").mkdir()
    Path("p.txt").write_text("a {b|c}\na {b|c} --seed 7 --count 2\nd\x1b]0;x --seed 8\n")
    Path("a-b-8.png").write_bytes(b"")
    Path("a-c-8.png").write_bytes(b"")
    line = ("--prompts", "p.txt", "--seed", "1", "--wildcards", "w", "--dry-run")
    outcome = command(*line)
    assert outcome.code == 0 and "\x1b" not in outcome.out
    names, seeds, prompts = zip(*(row.split("\t") for row in outcome.out.splitlines()), strict=True)
    assert seeds == ("seed 1", "seed 7", "seed 8", "seed 8")
    assert all(prompt in ("a b", "a c") for prompt in prompts[:3])
    assert names[2] in ("a-b-8-2.png", "a-c-8-2.png") and names[3] == "d-0-x-8.png"
    records = [json.loads(row) for row in command(*line, "--json").out.splitlines()]
    assert [record["path"] for record in records] == list(names)
    assert [record["prompt"] for record in records][:3] == list(prompts[:3])
    assert len(list(folder.iterdir())) == 4


def test_a_rehearsal_tells_the_names_of_the_run(draw: Command) -> None:
    Path("p.txt").write_text("a\na --cfg 2\nb\n")
    line = ("--prompts", "p.txt", "--seed", "1", "-o", "new/")
    rehearsed = [row.split("\t")[0] for row in draw(*line, "--dry-run").out.splitlines()]
    assert not Path("new").exists()
    assert draw(*line, *SMALL).out.split() == rehearsed


def test_a_sweep_ends_in_a_sheet_and_a_table(draw: Command) -> None:
    line = ("x", "-q", "--seed", "1", "--sweep", "cfg=1..3", "--sweep", "steps=1,2", "-o", "new/")
    outcome = draw(*line, "--resume")
    assert outcome.code == 0, outcome.err
    *paths, sheet, table = outcome.out.split()
    assert (len(paths), sheet, table) == (6, "new/sheet.png", "new/sheet.csv")
    assert paths[:2] == ["new/x-1-1.0-1.png", "new/x-1-2.0-1.png"]
    rows = list(csv.DictReader(io.StringIO(Path(table).read_text("utf-8"))))
    assert [(row["cfg"], row["steps"]) for row in rows] == [
        (f"{cfg}.0", steps) for steps in "12" for cfg in (1, 2, 3)
    ]
    before = Path(sheet).read_bytes()
    Path(paths[4]).unlink()
    again = draw(*line, "--resume")
    assert again.out.split() == [paths[4], sheet, table]
    assert Path(sheet).read_bytes() == before


@pytest.mark.parametrize(
    ("sweeps", "names"),
    [
        (["clip-skip=1,2"], ["x-1-clip-skip1.png", "x-1-clip-skip2.png"]),
        (["schedule=karras,linear"], ["x-1-schedulekarras.png", "x-1-schedulelinear.png"]),
        (["negative=blurry|"], ["x-1-negativeblurry.png", "x-1-negativenone.png"]),
        (["subseed=0,7"], ["x-1-subseed0.png", "x-1-subseed7.png"]),
        (["tile=none,xy"], ["x-1-tilenone.png", "x-1-tilexy.png"]),
        (["eta=0..0.5:0.5", "steps=3"], ["x-1-eta0-3.png", "x-1-eta0.5-3.png"]),
    ],
)
def test_a_sweeps_pictures_are_named_by_all_values(
    draw: Command, sweeps: list[str], names: list[str]
) -> None:
    options = [word for sweep in sweeps for word in ("--sweep", sweep)]
    rows = draw("x", "--seed", "1", *options, "--dry-run").out.splitlines()
    assert [row.split("\t")[0] for row in rows] == names


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_a_full_disk_leaves_what_was_there(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    from txt2img.system import files

    real, flushed = files.os.fsync, []

    def full(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) > 4:  # the second picture's latent; each file takes two, with its folder
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    line = ("x", *SMALL, "--seed", "1", "--count", "3", "--on-error", "skip", "-o", "new/")
    outcome = draw(*line, *more)
    assert (outcome.code, outcome.out) == (1, "new/x-1.png\n")
    assert "no space left on device" in outcome.err and outcome.err.count("\n") == 1
    assert [path.name for path in Path("new").iterdir()] == ["x-1.png"]
    assert image_file.read(Path("new/x-1.png")).request


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of sixteen pages, 64 KiB or more; only the administrator can make one."""
    (folder / "disk").mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "nr_blocks=16", "none", "disk"]
    if shutil.which("mount") is None or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder / "disk"
    subprocess.run(["umount", "disk"], check=True)


@pytest.mark.parametrize("more", [(), ("--batch-size", "4"), ("--json",), ("--save-steps",)])
def test_a_disk_that_is_full_has_whole_pictures_and_nothing_else(
    draw: Command,
    command: Command,
    sd1_folder: Path,
    small_disk: Path,
    more: tuple[str, ...],
) -> None:
    line = ("x", *SMALL, "--seed", "1", "--count", "40", "-o", "disk/", "--on-error", "skip")
    outcome = draw(*line, *more)
    assert outcome.code == 1
    *kept, error = outcome.err.splitlines()
    assert error.startswith("Error: cannot write") and "no space left on device" in error
    latents = [line.split()[-1] for line in kept]  # they are small, and may still have had room
    pictures = sorted(small_disk.glob("*.png"))
    known = {path.name for path in [*pictures, *map(Path, latents)]}
    assert {path.name for path in small_disk.iterdir()} == known
    assert 0 < len(pictures) < 40
    for path in pictures:
        with Image.open(path) as image:
            image.load()
        path.unlink()
    for latent in latents:  # now there is room again
        assert command("decode", latent, "-m", str(sd1_folder)).code == 0


@pytest.mark.parametrize("more", [("--batch-size", "3"), ("--resume",)])
def test_a_folder_that_vanishes_is_told_once(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    real = Output.write_as

    def write_and_lose(self: Output, data: bytes, name: str, number: int = 1) -> Path:
        path = real(self, data, name, number)
        shutil.rmtree("new")
        return path

    monkeypatch.setattr(Output, "write_as", write_and_lose)
    outcome = draw("x", *SMALL, "--seed", "1", "--count", "3", "-o", "new/", *more)
    assert (outcome.code, outcome.out) == (1, "new/x-1.png\n")
    assert outcome.err.startswith("Error: cannot write") and outcome.err.count("\n") == 1
    assert nothing_in(folder)
