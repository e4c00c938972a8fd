"""The command answers at once: no network library is loaded to say what it can do."""

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

import txt2img

HEAVY = {"accelerate", "diffusers", "numpy", "safetensors", "tokenizers", "torch", "transformers"}


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


def test_version_is_the_packages() -> None:
    assert run("--version").stdout.split()[-1] == txt2img.__version__


def test_help_fits_80_columns_and_shows_examples() -> None:
    text = run("--help").stdout
    assert max(len(line) for line in text.splitlines()) <= 80
    assert 'txt2img "' in text


def test_help_answers_quickly(record_property: Callable[[str, object], None]) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run("--help")
        seconds.append(time.perf_counter() - start)
    record_property("seconds", min(seconds))
    assert min(seconds) < 2  # 0.5 s on a quiet machine; what makes it slow is tested above
