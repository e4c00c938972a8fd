"""What is installed, and what a package index shows: built from pyproject.toml by hatchling."""

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_layers import PACKAGE
from txt2img.system.missing import PACKAGES

ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
URL = "https://example.org/someone/txt2img"


@pytest.fixture(scope="module")
def metadata() -> ModuleType:
    """The build's hook, .ci/metadata.py."""
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("metadata", ROOT / ".ci" / "metadata.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_work_away_from_the_repository(metadata: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = metadata.absolute(text, URL)
    assert f"]({URL}/raw/HEAD/tests/pictures/sheet.png)" in page
    assert f"]({URL}/blob/HEAD/weights.md)" in page
    assert (
        metadata.absolute("[Install](#install)", URL) == "[Install](#install)"
    )  # of the page itself
    relative = [link for link in re.findall(r"\]\(([^)#]+)", page) if "://" not in link]
    assert not relative


def test_without_an_address_no_link_is_dead(metadata: ModuleType) -> None:
    page = metadata.absolute("![A](a.png) see [b](c.md#d), [e](https://f.org), [g](#g)", "")
    assert page == " see b, [e](https://f.org), [g](#g)"


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        (f"{URL}.git", URL),
        ("git@example.org:someone/txt2img.git", URL),
        ("ssh://git@example.org/someone/txt2img", URL),
        ("/somewhere/on/a/disk", ""),
        ("", ""),
    ],
)
def test_the_address_is_the_repositorys(
    metadata: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str, url: str
) -> None:
    monkeypatch.delenv("PROJECT_URL", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    if remote:
        add = ["git", "-C", str(tmp_path), "remote", "add", "origin", remote]
        subprocess.run(add, check=True)
    assert metadata.address(tmp_path) == url
    monkeypatch.setenv("PROJECT_URL", "https://example.org/x/")
    assert metadata.address(tmp_path) == "https://example.org/x"


def test_every_dependency_is_bounded_and_has_advice_where_it_is_missing() -> None:
    known = set(PACKAGES.values())
    for line in PROJECT["project"]["dependencies"]:
        name = re.match(r"[\w-]+", line)
        assert name and name[0] in known, line
        assert re.search(r">=[\d.]+,<[\d.]+$", line), line


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PROJECT_URL": URL}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    return out


@pytest.mark.slow
def test_a_wheel_has_the_model_the_credits_and_no_workshop(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        info = next(name for name in names if name.endswith("dist-info/METADATA"))
        fields = Parser().parsestr(wheel.read(info).decode("utf-8"))
    assert {"txt2img/py.typed", "txt2img/weights/CREDITS.md"} <= names
    assert "txt2img/weights/default/unet/diffusion_pytorch_model.safetensors" in names
    assert any(name.endswith("licenses/txt2img/weights/CREDITS.md") for name in names)
    assert not [name for name in names if "default_model" in name or name.startswith("tests")]
    urls = dict(line.split(", ") for line in fields.get_all("Project-URL", []))
    assert urls["Repository"] == URL and "Changelog" in urls
    assert f"{URL}/raw/HEAD/tests/pictures/sheet.png" in fields.get_payload()
    assert fields["Keywords"] and "Typing :: Typed" in fields.get_all("Classifier", [])


@pytest.mark.slow
def test_an_sdist_has_what_its_tests_need(built: Path, tmp_path: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        sdist.extractall(tmp_path, filter="data")
    [root] = tmp_path.iterdir()
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "txt2img", "tests", ".ci"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not [name for name in tracked.stdout.splitlines() if not (root / name).is_file()]
    assert {path.name for path in root.iterdir()} >= {"README.md", "weights.md", "Makefile"}
    # Those that read the repository's files, and some that do not.
    files = (f"tests/test_{name}.py" for name in ("api", "distribution", "layers", "readme"))
    run = [sys.executable, "-m", "pytest", "-q", *files, "tests/system", "tests/request"]
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stdout
