"""--dry-run and --strict: what is reported before anything is drawn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Command
from txt2img.cli import dry_run
from txt2img.pipeline.estimates import history

SMALL = ("-W", "64", "-H", "64", "--steps", "2")


def records(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_record_says_all_that_decides_a_picture(command: Command, sd1_folder: Path) -> None:
    line = ("a (red:1.2) cat", "-n", "x", "--seed", "5", "--dry-run", "--json")
    outcome = command(*line, "-m", str(sd1_folder), *SMALL, "--device", "cpu")
    assert outcome.code == 0, outcome.err
    [said] = records(outcome.out)
    assert said["path"] == "a-red-1.2-cat-5.png" and said["seed"] == 5
    assert (said["size"], said["steps"], said["warnings"]) == ([64, 64], 2, [])
    assert said["model_file"] == str(sd1_folder) and said["model"] == sd1_folder.name
    assert (said["device"], said["dtype"]) == ("cpu", "float32")
    assert None not in (said["sampler"], said["schedule"], said["cfg"], said["family"])
    assert isinstance(said["tokens"], dict) and len(said["tokens"]["prompt"]) == 1
    assert isinstance(said["memory"], int) and said["memory"] > 1000


def test_the_names_are_those_of_the_run_and_its_time_is_judged_by_it(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    line = ("a cat", "--seed", "1", "--count", "2", "--device", "cpu", "-o", "new/")
    before = draw(*line, "--dry-run")
    assert "time unknown" in before.err and before.code == 0
    assert not (folder / "new").exists() and not (folder / "state").exists()
    drawn = draw(*line)
    assert drawn.code == 0, drawn.err
    assert [row.split("\t")[0] for row in before.out.splitlines()] == drawn.out.split()
    [speed] = history.read().values()
    assert speed.per_evaluation > 0 and speed.runs == 1
    after = draw(*line, "--dry-run")
    assert "about " in after.err and "estimated from the last run" in after.err
    [first, _] = records(draw(*line, "--dry-run", "--json").out)
    assert first["seconds"] == pytest.approx(
        64 * 64 / 1e6 * (speed.per_evaluation * 4 + speed.other), abs=0.002
    )


def test_a_device_that_is_not_found_is_reported(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("a", "--seed", "1", "--dry-run", "-m", "default", "--device")
    for seen in ("cpu", "cuda"):
        monkeypatch.setattr(dry_run, "guess_device", lambda name, seen=seen: seen)
        assert ("on cuda, which was not found" in command(*line, "cuda").err) == (seen == "cpu")
        assert "not found" not in command(*line, "cpu").err


def test_each_warning_is_reported_once(command: Command, sd1_folder: Path) -> None:
    Path("p.txt").write_text("a (cat\nb (cat\n(x:5)\nfine\n")
    line = ("--prompts", "p.txt", "--seed", "1", "--dry-run", "-m", str(sd1_folder))
    outcome = command(*line)
    assert outcome.code == 0
    notes = [row for row in outcome.err.splitlines() if row.startswith("Note:")]
    assert len(notes) == 2
    assert "picture 1: prompt, character 3" in notes[0] and "(and in 1 more)" in notes[0]
    assert [len(said["warnings"]) for said in records(command(*line, "--json").out)] == [1, 1, 1, 0]


@pytest.mark.parametrize("more", [("--dry-run",), (), ("--json",)])
def test_strict_makes_errors_of_warnings_before_anything_is_drawn(
    draw: Command, folder: Path, more: tuple[str, ...]
) -> None:
    outcome = draw("a (cat", "--seed", "1", "--strict", "-q", *more)
    assert outcome.code == 2
    assert outcome.err.endswith(
        "Error: --strict: prompt, character 3: ( is never closed; all after it counts 1.1 times\n"
    )
    assert not list(folder.glob("*.png"))
    if more == ("--json",):
        assert records(outcome.out)[-1]["code"] == 2


def test_strict_lets_a_run_without_warnings_be(draw: Command, folder: Path) -> None:
    assert draw("a cat", "--seed", "1", "--strict").code == 0
    assert len(list(folder.glob("*.png"))) == 1


def test_drawing_reports_the_same_as_a_dry_run(draw: Command) -> None:
    line = ("a (cat:4)", "--seed", "1")
    notes = [
        [row for row in draw(*line, *more).err.splitlines() if row.startswith("Note:")]
        for more in ((), ("--dry-run",))
    ]
    assert notes[0] == notes[1] == ['Note: prompt: "cat" counts 4 times; 0.5 … 1.5 is usual']


def test_a_prompt_that_is_cut_is_an_error_with_strict(draw: Command) -> None:
    outcome = draw("a " * 90, "--compat", "diffusers", "--seed", "1", "--strict")
    assert outcome.code == 2 and "are left out by diffusers" in outcome.err


def test_a_picture_that_fails_is_skipped_with_on_error_skip(
    command: Command, sd1_folder: Path
) -> None:
    Path("p.txt").write_text("a --seed 1\n(b:1.2.3) --seed 2\nc --seed 3\n")
    line = ("--prompts", "p.txt", "--dry-run", "-q", "-m", str(sd1_folder))
    assert command(*line).code == 2
    outcome = command(*line, "--on-error", "skip")
    assert outcome.code == 3 and "is no weight" in outcome.err
    assert len(outcome.out.splitlines()) == 2


def test_a_model_that_is_not_there_ends_a_dry_run(command: Command) -> None:
    outcome = command("x", "--seed", "1", "--dry-run", "-m", "nowhere")
    assert outcome.code == 1 and "no model" in outcome.err and outcome.out == ""


PROGRAM = """
import sys
from txt2img.cli import app
code = app.run(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
SLOW_TO_IMPORT = {"torch", "PIL", "rich", "huggingface_hub"}


def test_a_thousand_prompts_need_no_slow_import(folder: Path) -> None:
    lines = [f"a (red:1.2) apple number {n}, 3d emoji, [soft|hard] light\n" for n in range(1000)]
    Path("p.txt").write_text("".join(lines))
    line = ("--prompts", "p.txt", "--seed", "1", "--dry-run", "--json", "--device", "cpu")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *line],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TERM": "dumb"},
    )
    assert len(done.stdout.splitlines()) == 1000
    assert not SLOW_TO_IMPORT & set(done.stderr.splitlines()[-1].split())


def test_a_dry_run_lists_what_a_resumed_run_would_draw(draw: Command, folder: Path) -> None:
    line = ("a cat", "--seed", "1", "--count", "3", "-o", "art/", "--device", "cpu")
    assert draw(*line).code == 0
    Path("art/a-cat-2.png").unlink()
    Path("art/a-cat-3.png").rename("art/mine.png")  # known by what it says
    outcome = draw(*line, "--dry-run", "--resume")
    assert outcome.out == "art/a-cat-2.png\tseed 2\ta cat\n"
    assert "2 of 3 pictures are there already\n" in outcome.err
    drawn = draw(*line, "--resume", "--json")
    [said] = records(drawn.out)
    [told] = records(draw(*line, "--dry-run", "--json").out)[1:2]
    assert (said["path"], said["id"]) == ("art/a-cat-2.png", told["id"])


def test_a_dry_run_tells_that_a_name_is_taken(draw: Command, folder: Path) -> None:
    Path("x.png").write_bytes(b"old")
    for more in ((), ("--dry-run",)):
        outcome = draw("x", "--seed", "1", "-o", "x.png", *more)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith('Error: "x.png" exists; add --overwrite')
    assert draw("x", "--seed", "1", "-o", "x.png", "--dry-run", "--overwrite").code == 0


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_name_that_is_taken_moves_all_that_follow(draw: Command, more: tuple[str, ...]) -> None:
    Path("x.png").write_bytes(b"old")
    line = ("x", "--seed", "1", "--count", "3", "-o", "{prompt}.png", *more)
    told = [row.split("\t")[0] for row in draw(*line, "--dry-run").out.splitlines()]
    assert told == draw(*line).out.splitlines()


def test_a_dry_run_of_a_model_never_loaded_knows_no_finished_pictures(
    command: Command, sd1_folder: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    line = ("a cat", "--seed", "1", "-m", str(sd1_folder), "--dry-run", "-o", "./", "--json")
    outcome = command(*line, "--resume")
    assert outcome.code == 0 and len(records(outcome.out)) == 1
    assert "never loaded here" in outcome.err and "id" not in records(outcome.out)[0]
