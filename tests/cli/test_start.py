"""The command answers at once: no network library is loaded to say what it can do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import txt2img
from tests.conftest import Command
from tests.support import tiny
from txt2img.request import Sampler, Schedule

HEAVY = {"accelerate", "diffusers", "numpy", "safetensors", "tokenizers", "torch", "transformers"}


# What a drawing has no use for, and torch alone does not load.
UNUSED = {"accelerate", "diffusers", "huggingface_hub", "rich", "sympy", "transformers"}


def run(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`python -m txt2img` as a person on a terminal of 80 columns would see it."""
    return subprocess.run(
        [sys.executable, *flags, "-m", "txt2img", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"},
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_start_loads_no_network_library(argument: str) -> None:
    loaded = run(argument, flags=("-X", "importtime")).stderr.splitlines()
    modules = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in loaded if "|" in line}
    assert "txt2img" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("adapted", [False, True])
def test_drawing_loads_no_other_library_than_torch(adapted: bool, tmp_path: Path) -> None:
    model = ("--lora", "few-steps") if adapted else ("--model", str(tiny.own()))
    asked = ("a cat", *model, "--width", "64", "--height", "64", "--steps", "1")
    out = ("-o", str(tmp_path / "a.png"))
    loaded = run(*asked, *out, flags=("-X", "importtime")).stderr.splitlines()
    modules = {line.rsplit("|", 1)[-1].strip() for line in loaded if "|" in line}
    assert "torch" in modules
    assert not {module.split(".")[0] for module in modules} & UNUSED
    assert "torch._dynamo" not in modules  # torch's compiler: as long to load as torch itself


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "'3000'"), ({"GOMP_SPINCOUNT": "70"}, "'70'"), ({"OMP_WAIT_POLICY": "passive"}, "'0'")],
)
def test_waiting_threads_leave_their_cores_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str
) -> None:
    quiet = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", "from txt2img.cli import app; app.run(['--version']); import torch"],
        capture_output=True,
        text=True,
        env={**quiet, **given, "OMP_DISPLAY_ENV": "VERBOSE"},
        timeout=60,
        check=True,
    )
    said = re.search(r"GOMP_SPINCOUNT = (\S+)", done.stderr)
    if said is None:
        pytest.skip("this torch waits by another library than GNU's")
    assert said[1] == spins


def test_a_missing_model_is_reported_before_torch_is_loaded() -> None:
    program = (
        "import sys; from txt2img.cli import app; code = app.run(['x', '-m', 'nothing']); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr[:25]) == (1, b'Error: no model "nothing"')


def test_version_is_the_packages() -> None:
    assert run("--version").stdout.split()[-1] == txt2img.__version__


def test_help_fits_80_columns_and_shows_examples() -> None:
    text = run("--help").stdout
    assert max(len(line) for line in text.splitlines()) <= 80
    assert 'txt2img "' in text


def test_help_shows_every_option_once_in_a_section() -> None:
    text = run("--help").stdout
    titles = [line for line in text.splitlines() if re.fullmatch(r"[A-Z][^.:]*:", line)]
    first = ["Arguments:", "Prompt:", "Picture:", "Guidance:", "Image to image and inpainting:"]
    assert titles[: len(first)] == first
    rest = text.split("\nOptions:\n")[1].split("\n\n")[0]
    own = {"--profile", "--version", "--install-completion", "--show-completion", "--help"}
    assert set(re.findall(r"^ +(--[a-z-]+)", rest, re.MULTILINE)) == own
    names = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)
    assert len(set(names)) == len(names) > 60


@pytest.mark.parametrize(
    ("asked", "usual"),
    [
        (["help"], ["--help"]),
        (["help", "info"], ["info", "--help"]),
        (["help", "models", "pull"], ["models", "pull", "--help"]),
        (["help", "-h"], ["help", "help"]),
    ],
)
def test_help_is_a_word_for_help(asked: list[str], usual: list[str]) -> None:
    assert run(*asked).stdout == run(*usual).stdout


def test_a_topic_of_help_has_the_options_seldom_used_too(command: Command) -> None:
    whole, memory = command("--help").out, command("help", "memory").out
    assert "--no-optimize" in memory and "--no-optimize" not in whole
    assert memory.splitlines()[0] == "Device and memory:" and "--steps" not in memory
    mask = command("help", "--mask").out  # an option
    assert "--mask-blur" in mask and "--ip-mask" in mask and "--strength" not in mask
    assert "--device" in command("help", "cuda").out  # a word of a description
    assert "\n  Guidance\n" in command("help", "help").out
    unknown = command("help", "xyzzy")
    assert unknown.code == 2 and "no topic" in unknown.err and "Guidance" in unknown.err


def test_samplers_are_listed_with_their_names_elsewhere(command: Command) -> None:
    listed = [json.loads(line) for line in command("samplers", "--json").out.splitlines()]
    kinds = {"sampler": Sampler, "schedule": Schedule}
    assert [row["name"] for row in listed] == [*Sampler, *Schedule]
    for row in listed:
        assert all(kinds[row["kind"]].parse(name) == row["name"] for name in row["aliases"])
    text = command("samplers").out
    assert command("--sampler", "list").out == command("a", "--schedule", "list").out == text
    assert "EulerAncestralDiscreteScheduler" in text
