"""How the default model is made is not part of what users install."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_the_workshop_is_left_out_of_the_wheel() -> None:
    setuptools = pytest.importorskip("setuptools")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    how = project["tool"]["setuptools"]["packages"]["find"]
    packages = setuptools.find_packages(str(ROOT), include=how["include"], exclude=how["exclude"])
    assert "txt2img.train" in packages
    assert not [name for name in packages if "default_model" in name]
