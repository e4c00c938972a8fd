"""Times calls that load the model beside calls that a warm worker draws for; used by bench.py."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

PROMPT = "red apple, 3d emoji"
STEPS = 30


@dataclass(frozen=True)
class Call:
    """One call of the command, in seconds: whole, and from its start to that of the drawing."""

    whole: float
    before: float


@contextmanager
def house() -> Iterator[dict[str, str]]:
    """Variables with a folder for sockets of this run's own; its workers end with it."""
    with tempfile.TemporaryDirectory(prefix="t2i-", dir="/tmp") as folder:
        variables = {**os.environ, "XDG_RUNTIME_DIR": folder}
        variables.pop("TXT2IMG_KEEP_ALIVE", None)
        try:
            yield variables
        finally:
            stop = (sys.executable, "-m", "txt2img", "worker", "stop")
            subprocess.run(stop, env=variables, check=True, capture_output=True)


def call(variables: dict[str, str], folder: str, *how: str, steps: int = STEPS) -> Call:
    """Draw one picture of the default model; gives how long it took."""
    options = ("--steps", str(steps), "--seed", "42", "--json", "--output", f"{folder}/")
    line = (sys.executable, "-m", "txt2img", PROMPT, *options, *how)
    start = time.perf_counter()
    done = subprocess.run(line, env=variables, check=True, capture_output=True)
    whole = time.perf_counter() - start
    # The record counts from when drawing begins, prompts included, to when the file is written.
    return Call(whole, whole - float(json.loads(done.stdout)["seconds"]))


def figures(rounds: int) -> dict[str, float]:
    """Medians in seconds of calls that take turns, after one that starts the worker.

    A call of one step bounds the time to the first step from above: it decodes and writes too.
    """
    cold: list[Call] = []
    warm: list[Call] = []
    short: list[Call] = []
    with house() as variables, tempfile.TemporaryDirectory() as folder:
        call(variables, folder, "--keep-alive", "10m")
        for _ in range(rounds):
            cold.append(call(variables, folder, "--no-keep-alive"))
            warm.append(call(variables, folder, "--keep-alive", "10m"))
            short.append(call(variables, folder, "--keep-alive", "10m", steps=1))
    return {
        f"cold call, {STEPS} steps": median(cold).whole,
        f"warm call, {STEPS} steps": median(warm).whole,
        "warm call of one step, to its file": median(short).whole,
        "cold call, until it draws": median(cold).before,
        "warm call, until it draws": median(warm).before,
    }


def median(calls: list[Call]) -> Call:
    """The middle of each figure."""
    whole, before = zip(*((one.whole, one.before) for one in calls), strict=True)
    return Call(statistics.median(whole), statistics.median(before))
