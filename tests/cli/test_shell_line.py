"""The command line that draws a picture: a shell gets back exactly what went in."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Command
from tests.support import picture_files
from txt2img.cli.shell_line import command_line, shell_quote
from txt2img.images import image_file
from txt2img.images.record import Origin
from txt2img.request import Compat, Request, Sampler, Schedule
from txt2img.request.adapters import Lora

REQUEST = Request(
    "a cat, big", "-x", "m", 64, 80, 3, 7.5, 0.5, 0.25, Sampler.EULER_A, Schedule.KARRAS, 42
)
NASTY = [
    "it's",
    '"$HOME" `ls` \\',
    "a\nb\t\r",
    "\x1b]0;evil\x07",
    "\x9b31m",
    "\u202eabc",
    "äpfel 苹 🍎",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_a_shell_gets_the_text_back(text: str) -> None:
    word = shell_quote(text)
    assert "\n" not in word and "\x1b" not in word and "\x9b" not in word
    done = subprocess.run(
        ["bash", "-c", f"printf %s {word}"],
        capture_output=True,
        env={"LC_ALL": "C.UTF-8"},
        check=True,
    )
    assert done.stdout.decode() == text


def test_defaults_are_left_out() -> None:
    assert command_line(Request("a cat", seed=7)) == "txt2img 'a cat' --seed 7"
    assert command_line(Request("train")) == "txt2img generate train"
    assert command_line(Request("-rf /", seed=7)) == "txt2img --seed 7 -- '-rf /'"


def test_loras_are_written_as_tags() -> None:
    request = Request("a cat", loras=(Lora("style", 0.5, 0.5),))
    assert command_line(request) == "txt2img 'a cat <lora:style:0.5>'"


def test_other_programs_rules_are_written() -> None:
    request = Request(
        *("x", "", "m"),
        seed=1,
        compat=Compat.A1111,
        clip_skip=2,
        subseed=3,
        subseed_strength=0.5,
        ensd=31337,
        rng="nv:43008",
    )
    assert command_line(request).endswith(
        "--seed 1 --compat a1111 --clip-skip 2 --subseed 3 --subseed-strength 0.5 --ensd 31337 "
        "--rng nv:43008"
    )


def test_every_field_that_decides_a_picture_is_written(command: Command) -> None:
    line = command_line(REQUEST)
    assert line == (
        "txt2img 'a cat, big' --negative=-x --model m --width 64 --height 80 --steps 3 "
        "--cfg 7.5 --cfg-rescale 0.5 --eta 0.25 --sampler euler_a --schedule karras --seed 42"
    )


def save(request: Request = REQUEST) -> None:
    """A picture of a request."""
    picture_files.save(
        Image.new("RGB", (64, 80)),
        Path("x.png"),
        request,
        Origin("m", "0"),
        overwrite=True,
    )


def test_info_prints_a_picture_as_a_command(command: Command) -> None:
    save()
    assert command("info", "--command", "x.png").out == command_line(REQUEST) + "\n"


def test_info_prints_a_picture_as_infotext(command: Command) -> None:
    save()
    out = command("info", "--a1111", "x.png").out
    assert out.rstrip("\n") == image_file.read(Path("x.png")).texts["parameters"]


def test_the_forms_of_info_exclude_each_other(command: Command) -> None:
    save()
    assert command("info", "--a1111", "--command", "x.png").code == 2
    Image.new("RGB", (8, 8)).save("y.png")
    outcome = command("info", "--command", "y.png", "x.png")
    assert outcome.code == 2 and "does not say" in outcome.err
    assert outcome.out.startswith("txt2img ")


def test_a_rehearsal_of_the_line_asks_for_the_same(command: Command) -> None:
    for prompt in (*NASTY, "-rf", "info"):
        request = replace(REQUEST, prompt=prompt, model="default")
        words = (
            subprocess.run(
                ["bash", "-c", f"set -- {command_line(request)}; printf '%s\\0' \"$@\""],
                capture_output=True,
                env={"LC_ALL": "C.UTF-8"},
                check=True,
            )
            .stdout.decode()
            .split("\0")[1:-1]
        )
        start = words[:1] if words[0] == "generate" else []
        outcome = command(*start, "--dry-run", "--json", *words[len(start) :])
        assert outcome.code == 0, outcome.err
        record = json.loads(outcome.out)
        assert (record["prompt"], record["negative"], record["seed"]) == (prompt, "-x", 42)
        assert (record["size"], record["cfg"], record["sampler"]) == ([64, 80], 7.5, "euler_a")
