"""What users get wrong is answered in one line and an exit code, and leaves nothing behind."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Command, Outcome
from txt2img.diffusion.levels import State
from txt2img.images import output
from txt2img.pipeline import batch
from txt2img.request.request import Request
from txt2img.weights.model import Model


def refused(outcome: Outcome, code: int, *parts: str) -> None:
    """Check that it is one line on stderr with these parts, nothing on stdout, and that code."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), outcome.err
    assert all(part in lines[0] for part in parts), lines[0]


def nothing_in(folder: Path) -> bool:
    """Whether a folder is empty, hidden files too."""
    return not list(folder.iterdir())


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("x --steps 0", ["steps must be 1 … 10,000, got 0"]),
        ("x --steps many", ['--steps must be a whole number, got "many"']),
        ("x --width 100", ["multiple of 8, got 100; the nearest: 96 or 104"]),
        ("x -W 100000", ["64 … 8,192"]),
        ("x --seed abc", ['--seed must be a whole number, got "abc"']),
        ("x --seed -2", ["seed must be 0 … 2^64-1, got -2"]),
        ("x --seed 18446744073709551616", ["2^64-1"]),
        ("x --seed 1_0", ["whole number"]),
        ("x --cfg nan", ["cfg must be 0 … 1000, got nan"]),
        ("x --cfg -1", ["0 … 1000"]),
        ("x --cfg 1e308", ["cfg must be 0 … 1000, got 1e+308"]),
        ("x --cfg much", ['--cfg must be a number, got "much"']),
        ("x --eta 2", ["eta must be 0 … 1"]),
        ("x --count 0", ["count must be 1"]),
        ("x --batch-size 0", ["--batch-size must be at least 1, got 0"]),
        ("x --sampler eulr", ['no sampler "eulr"', "did you mean euler?"]),
        ("x --schedule no", ['no schedule "no"', "karras"]),
        ("x --stepz 3", ["--stepz", "--steps"]),
        ("x --steps", ["--steps"]),
        ("x --n_samples 2", ['no option "--n_samples"; use --count, or --batch-size']),
        ("x -s 30", ['no option "-s"; use --steps, or --seed']),
        ("x --size 512x512", ["use -W 512 -H 512"]),
        ("x -W 512x768", ['whole number, got "512x768"', "-W 512 -H 768"]),
        ("x --strength abc", ['--strength must be a number, got "abc"']),
        ("x --strength 1.5", ["strength must be 0 … 1, got 1.5"]),
        ("x --zzzz", ["txt2img --help lists them"]),
        ("-5-apples", ['no option "-5"', "a prompt that begins with a hyphen goes last, after --"]),
        ("x -o /dev/null", ["-o - writes one to standard output"]),
        ("replay --stepz 3", ['no option "--stepz"; did you mean --steps']),
        ("x --seed", ["--seed needs a value", "--help"]),
        ("x --count 2 -o x.pdf", ['name it "x.png"']),
        ("pull sd15", ["did you mean the command models pull?"]),
        ("models", ["txt2img models list|show|words|path|hash|convert|pull|rm|default"]),
        ("x --device tpu", ['no device "tpu"', "cpu"]),
        ("x --dtype int8", ['no dtype "int8"']),
        ("red apple", ['put the prompt in quotes: "red apple"']),
        ("infoo x.png", ["did you mean the command info?"]),
        ("", ["no prompt; try txt2img"]),
        ("x --prompts p.txt", ["give one of them"]),
        ("x -o x.gif", ['name it "x.png"']),
        ("x -o {sed}.png", ["{seed}"]),
        ("info", ["FILE", "txt2img info --help"]),
        ("train", ["txt2img train DATA --out FOLDER"]),
        ("train no --out m", ['no data at "no"']),
    ],
)
def test_a_line_that_cannot_be_is_a_usage_error(
    command: Command, folder: Path, line: str, parts: list[str]
) -> None:
    refused(command(*line.split()), 2, *parts)
    assert nothing_in(folder)


@pytest.mark.parametrize("prompt", ["a\0b", "a\ud800", "a\udcff"])
def test_a_prompt_that_is_not_text_is_a_usage_error(command: Command, prompt: str) -> None:
    refused(command(prompt), 2, "prompt")


def test_a_model_that_is_not_there(command: Command, folder: Path) -> None:
    refused(command("x", "-m", "nope", "-o", "new/"), 1, 'no model "nope"')
    assert nothing_in(folder)


def test_a_pickle(command: Command, folder: Path) -> None:
    Path("m.ckpt").write_bytes(b"\x80\x04K\x01.")
    refused(command("x", "-m", "m.ckpt"), 1, "m.ckpt", "pickle")


def test_a_truncated_weight_file(command: Command, folder: Path) -> None:
    from tests.support import tiny

    Path("m.safetensors").write_bytes(tiny.sd1().file.read_bytes()[:-1000])
    refused(command("x", "-m", "m.safetensors"), 1, "m.safetensors")
    assert [path.name for path in folder.iterdir()] == ["m.safetensors"]


def test_a_web_page_that_is_called_weights(command: Command) -> None:
    Path("m.safetensors").write_bytes(b"<!DOCTYPE html><html></html>" * 10)
    refused(command("x", "-m", "m.safetensors"), 1, "m.safetensors")


def test_steps_that_the_schedule_cannot_take(draw: Command, folder: Path) -> None:
    line = draw("x", "-o", "new/", "--steps", "1001", "--schedule", "leading")
    refused(line, 2, "1 … 1,000 steps, got 1,001")
    assert nothing_in(folder)


def test_prompt_files_that_are_not_there_or_no_text(command: Command, folder: Path) -> None:
    refused(command("--prompts", "no.txt"), 1, 'cannot read "no.txt": no such file')
    refused(command("--prompts", "."), 1, "regular file")
    Path("p.txt").write_bytes(b"\xff")
    refused(command("--prompts", "p.txt"), 1, "not UTF-8 text")
    Path("p.txt").write_text("fine\nx --steps 0\n")
    refused(command("--prompts", "p.txt"), 2, '"p.txt" line 2: steps must be')
    Path("p.txt").write_text("# nothing\n")
    refused(command("--prompts", "p.txt"), 2, "no prompts")


def test_pictures_that_say_nothing_cannot_be_repeated(command: Command) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save("x.png")
    refused(command("--params-from", "x.png"), 2, "does not say how it was drawn")
    refused(command("--params-from", "no.png"), 1, "no such file")
    Path("p.txt").write_text("red apple\n")
    refused(command("--params-from", "p.txt"), 1, "begins like none of PNG, JPEG, WEBP, AVIF")
    Path("x.png").write_bytes(Path("x.png").read_bytes()[:40])
    refused(command("--params-from", "x.png"), 1, "not a whole PNG file")


def test_an_exact_name_that_exists(draw: Command, folder: Path) -> None:
    Path("x.png").write_bytes(b"old")
    refused(draw("x", "-o", "x.png"), 1, '"x.png" exists; add --overwrite')
    assert Path("x.png").read_bytes() == b"old"
    assert draw("x", "-o", "x.png", "--overwrite").code == 0
    assert Path("x.png").read_bytes() != b"old"


def test_output_folders_that_cannot_be(command: Command, folder: Path) -> None:
    Path("file").write_bytes(b"")
    refused(command("x", "-o", "file/"), 1, 'cannot write "file"')
    refused(command("x", "-o", "/proc/no/"), 1, 'cannot write "/proc/no"')


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_an_output_folder_without_permission(command: Command, folder: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    refused(command("x", "-o", "locked/"), 1, "permission denied")


def test_a_full_disk(draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "fsync", full)
    refused(draw("x", "--seed", "1", "-o", "new/"), 1, "no space left on device")
    assert nothing_in(folder)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_keeps_finished_pictures(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, times: int
) -> None:
    real = os.fsync
    flushed: list[int] = []

    def stopping(descriptor: int) -> None:
        real(descriptor)
        flushed.append(descriptor)
        if len(flushed) == 7:  # the second picture's file, after its latent; two each, with folders
            for _ in range(times):
                signal.raise_signal(number)

    monkeypatch.setattr(output.os, "fsync", stopping)
    outcome = draw("x", "--seed", "1", "--count", "3")
    finishing = "Finishing the picture; once more stops at once.\n" * (times == 1)
    done = ["x-1.png", "x-2.png"][: 3 - times]
    assert (outcome.code, outcome.out.split()) == (code, done)
    left = [path.name for path in folder.iterdir() if path.suffix != ".png"]
    kept = [f"The latent is kept: txt2img decode {name}\n" for name in left]
    assert len(left) == times - 1
    said = "Stopped; pictures that were finished are kept.\n"
    assert outcome.err == f"{finishing}{''.join(kept)}{said}"
    assert sorted(path.name for path in folder.glob("*.png")) == done


def test_a_stop_during_a_picture_finishes_it_and_those_that_are_encoded_meanwhile(
    draw: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card, where the second picture has begun before the first is written."""
    own, begun = batch.sample, []

    def stopping(model: Model, requests: list[Request]) -> Iterator[State]:
        begun.append(requests)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return own(model, requests)

    monkeypatch.setattr(batch, "sample", stopping)
    monkeypatch.setattr(batch, "on_gpu", lambda model: True)
    outcome = draw("x", "--seed", "1", "--count", "3")
    assert (outcome.code, outcome.out.split()) == (130, ["x-1.png", "x-2.png"])
    assert "Finishing the picture" in outcome.err
    assert sorted(path.name for path in folder.iterdir()) == ["x-1.png", "x-2.png"]


def test_an_unexpected_error_is_one_line_too(
    draw: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("odd\n\x1b[31m")

    monkeypatch.setattr(batch, "sample", broken)
    refused(
        draw("x", "--seed", "1"),
        1,
        r"unexpected ZeroDivisionError: odd\n\x1b[31m",
        "TXT2IMG_DEBUG=1",
    )
    monkeypatch.setenv("TXT2IMG_DEBUG", "1")
    assert "Traceback" in draw("x", "--seed", "1").err


def test_errors_do_not_say_foreign_control_characters(command: Command) -> None:
    outcome = command("x", "-m", "\x1b]0;evil\x07\u202e[red]")
    refused(outcome, 1, r"\x1b]0;evil\x07\u202e[red]")
