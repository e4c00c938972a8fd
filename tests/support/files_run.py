"""Count the package's files whose functions one command line runs, once all is imported.

From a shell, `python tests/support/files_run.py "a red apple" --steps 30` lists them on stderr.
"""

import inspect
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

PACKAGE = "/txt2img/"


class Tracer:
    """A profiler that notes every file of the package in which a function is called."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note the file of a call, unless an import or a class statement makes it."""
        code = frame.f_code
        name = code.co_filename.rpartition(PACKAGE)[2]
        if event != "call" or PACKAGE not in code.co_filename or name in self.files:
            return
        if code.co_flags & inspect.CO_OPTIMIZED and not any(map(_is_import, _callers(frame))):
            self.files.add(name)


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_import(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_name == "<module>" and frame.f_globals["__name__"].startswith("txt2img.")


def files_run(*arguments: str, folder: Path) -> list[str]:
    """The files of `txt2img ARGUMENTS` in a process of its own, whose pictures go to `folder`."""
    command = [sys.executable, __file__, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return [line for line in done.stderr.splitlines() if line.endswith(".py")]


if __name__ == "__main__":
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    try:
        runpy.run_module("txt2img", run_name="__main__")
    finally:
        sys.setprofile(None)
        sys.stderr.write("\n".join([*sorted(tracer.files), f"{len(tracer.files)} files", ""]))
