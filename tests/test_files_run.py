"""How many of the package's files one picture needs: a newcomer reads them all to follow it."""

from pathlib import Path

from tests.support.files_run import files_run

FILES_MAX = 101


def test_a_picture_runs_the_functions_of_few_files(tmp_path: Path) -> None:
    files = files_run("a red apple", "--steps", "2", folder=tmp_path)
    assert "diffusion/samplers.py" in files and "train/loop.py" not in files
    assert len(files) <= FILES_MAX, "\n".join(files)
