"""Runs of the command in processes of their own that may be killed, without a start of their own.

They are forked from a server that has torch loaded and never computes: a fork of a process whose
threads compute would wait for them for ever.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from txt2img.cli import app
from txt2img.pipeline import batch
from txt2img.system import files

ON_CARD = "DOOMED_ON_CARD"
PRELOADED = ["tests.support.doomed", "txt2img.pipeline.batch", "txt2img.weights.load"]
HERE = Path(__file__).parent


def start(
    arguments: Sequence[str],
    out: str,
    calls: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """A process that runs a command line here, its stdout a file, with more `variables`.

    With `calls` it kills itself when it deals with the disk for the last time but so many.
    Where this process has ON_CARD in its environment, files are encoded as if a card drew.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent)])
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    on_card = ON_CARD in os.environ
    process = context.Process(
        target=run, args=(list(arguments), os.getcwd(), out, calls, variables, on_card)
    )
    process.start()
    return process


def run(
    arguments: list[str],
    folder: str,
    out: str,
    calls: int | None,
    variables: Mapping[str, str] | None,
    on_card: bool,
) -> None:
    """What such a process does."""
    os.chdir(folder)
    os.environ |= variables or {}
    if on_card:
        batch.on_card = lambda model: True
    with open(out, "wb") as file:
        os.dup2(file.fileno(), 1)
    if calls is not None:
        doom(calls)
    sys.exit(app.run(arguments))


def doom(calls: int) -> None:
    """Have this process kill itself once `calls` of its dealings with the disk are done."""
    left = iter(range(calls))

    def fatal(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    # Four for each picture's latent, and four for the picture: a folder is flushed, too.
    for name in ("dup", "fsync", "replace", "link"):
        setattr(files.os, name, fatal(getattr(os, name)))
