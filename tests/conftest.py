"""What many tests share: a folder to work in, tiny models, the command in this process.

torch and diffusers are imported by the fixtures that need them: most tests need neither.
"""

import gc
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from txt2img.cli import app

if TYPE_CHECKING:
    from txt2img.weights.model import Model


@dataclass(frozen=True)
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def pytest_collection_finish() -> None:
    """Leave what all modules imported out of the collector's rounds, which take a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs note how long they took: a folder of the tests' own, also for their processes.

    Models in the developer's Hugging Face cache are not there for the tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        patch.setenv("HF_HOME", str(folder / "huggingface"))
        yield folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(folder: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs a command line of txt2img in this process, in an empty folder."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = app.run(arguments)
        return Outcome(code, *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def sd1_folder() -> Path:
    """A tiny SD 1 model in a diffusers folder."""
    from tests.support import tiny

    return tiny.sd1().folder


@pytest.fixture(scope="session")
def sd1_model(sd1_folder: Path) -> "Model":
    """The same, loaded on the CPU."""
    from txt2img.system.device.device import choose
    from txt2img.weights.load import load

    return load(str(sd1_folder), choose("cpu"))


@pytest.fixture
def draw(command: Command, sd1_folder: Path) -> Command:
    """Runs a command line that draws with the tiny model: 64x64, two steps."""
    small = ("-m", str(sd1_folder), "-W", "64", "-H", "64", "--steps", "2")

    def run(*arguments: str) -> Outcome:
        first = arguments[:1] if arguments[0] == "generate" else ()
        return command(*first, *small, *arguments[len(first) :])

    return run


@pytest.fixture(scope="module")
def loaded(sd1_folder: Path) -> "Model":
    """A tiny SD 1 model of this module's own, which may be changed and changed back."""
    import torch

    from txt2img.system.device.device import Device
    from txt2img.weights.load import load

    return load(str(sd1_folder), Device(torch.device("cpu"), torch.float32))


@pytest.fixture
def model(loaded: "Model") -> "Iterator[Model]":
    """A model that wears nothing, before and after."""
    from txt2img.request.request import Request
    from txt2img.weights.apply_adapters import apply_adapters
    from txt2img.weights.model import AdapterState

    yield replace(loaded, adapters=(state := AdapterState()))
    loaded.adapters = state
    apply_adapters(loaded, Request(""))


@pytest.fixture
def as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks compute as they are written: laid out for speed they round otherwise."""
    from txt2img.pipeline import cpu_speed

    monkeypatch.setattr(cpu_speed, "_choose_plan", lambda *_: None)
