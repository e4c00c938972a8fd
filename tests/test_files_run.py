"""How many of the package's files one picture needs: a newcomer reads them all to follow it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.files_run import files_run

FILES_MAX = 89


def test_a_picture_runs_the_functions_of_few_files(tmp_path: Path) -> None:
    files = files_run("a red apple", "--steps", "2", folder=tmp_path)
    assert "diffusion/samplers.py" in files and "train/loop.py" not in files
    assert len(files) <= FILES_MAX, "\n".join(files)


def test_a_unets_picture_never_imports_transformers(tmp_path: Path) -> None:
    """It takes seconds, and has the text encoders of diffusion transformers only."""
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('txt2img', run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    size = ("--width", "64", "--height", "64", "--steps", "1")
    done = subprocess.run(
        [sys.executable, "-c", script, "a red apple", *size],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "True False", done.stderr
