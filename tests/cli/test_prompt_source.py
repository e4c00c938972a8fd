"""A prompt comes from the line or from standard input; what is hardly meant as one is told."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Command
from txt2img.cli.requests import too_many_prompts, warnings

DRY = ("--seed", "1", "--dry-run", "--json", "-m", "default")


def piped(text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """What the program answers to a text on standard input, in a process of its own."""
    line = [sys.executable, "-m", "txt2img", *arguments, *DRY]
    return subprocess.run(line, input=text, capture_output=True, check=False, env=dict(os.environ))


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_the_prompt_may_come_through_a_pipe(folder: Path, arguments: tuple[str, ...]) -> None:
    outcome = piped(b"red apple\n", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout.splitlines()[0])["prompt"] == "red apple"


def test_a_hyphen_reads_standard_input(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a pear\n")))
    assert json.loads(command("-", *DRY).out.splitlines()[0])["prompt"] == "a pear"
    for content, message in ((b" \n", "no prompt on standard input"), (b"\xff", "not UTF-8")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        outcome = command("-", *DRY)
        assert outcome.code and message in outcome.err


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("list", '"list" is drawn as a prompt; or did you mean txt2img models list?'),
        ("serve", "did you mean txt2img serve?"),
        ("convert", "did you mean txt2img models convert?"),
        ("webui", "did you mean txt2img serve?"),
        ("trian", "did you mean txt2img train?"),
        ("cat --steps 5", 'prompt: "--steps 5" is part of it; close its quotes before the options'),
        ("a cat \u2014steps 5", "steps 5"),
        ("\u201capple\u201d", "straight quotes"),
    ],
)
def test_what_is_hardly_meant_as_a_prompt_is_told(prompt: str, line: str) -> None:
    [warning] = warnings(prompt, is_named=False)
    assert line in warning


@pytest.mark.parametrize("prompt", ["a cat", "a cat - black", "dog \u2014 old", "the list", "x--y"])
def test_a_prompt_has_no_warning(prompt: str) -> None:
    assert list(warnings(prompt, is_named=False)) == []


def test_a_command_that_was_named_has_no_hint(command: Command) -> None:
    assert "did you mean" in command("list", *DRY).err
    assert "did you mean" not in command("generate", "list", *DRY).err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["\u201cred", "apple\u201d"], 'straight quotes only: "red apple"'),
        (["a cat", "\u2014steps", "5"], "has a dash: write --steps"),
        (["red", "apple"], 'put the prompt in quotes: "red apple"'),
        (["list", "x"], "did you mean the command models list?"),
    ],
)
def test_several_prompts_are_told_with_what_to_type(words: list[str], part: str) -> None:
    assert part in too_many_prompts(words)
