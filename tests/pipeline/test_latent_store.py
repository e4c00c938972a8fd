"""Latents outlive what befalls a run between its last step and its picture; then they go."""

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from PIL import Image

from tests.conftest import Command
from txt2img.errors import BadFile, OutOfMemory
from txt2img.images import image_file, resume
from txt2img.images.output import parse
from txt2img.images.record import Origin
from txt2img.images.resume import Item
from txt2img.pipeline import batch, generate, latent_store
from txt2img.pipeline.latent_store import Latent, LatentStore
from txt2img.request.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from txt2img.pipeline.generate import Progress

ARGUMENTS = ("x", "--seed", "1", "-q")
Patch = pytest.MonkeyPatch


def hidden(folder: Path) -> list[Path]:
    """What lies there that is no picture."""
    return [path for path in folder.iterdir() if path.is_file() and path.suffix != ".png"]


def after_last_step(x: "Tensor") -> "Progress":
    """The state of one image whose latent (C, h, w) is done."""
    state = SimpleNamespace(step=3, steps=3, x=x[None], x0=x[None] - 1)
    return cast("Progress", state)


def lacking(*_: object) -> list[Image.Image]:
    """A decoder without memory."""
    raise OutOfMemory("no memory")


@pytest.fixture
def whole(draw: Command) -> bytes:
    """The file of an undisturbed run."""
    assert draw(*ARGUMENTS, "-o", "whole.png").code == 0
    return Path("whole.png").read_bytes()


def unlucky(draw: Command, monkeypatch: Patch, *more: str) -> str:
    """A run that fails at its decoding; gives the command that it tells."""
    with monkeypatch.context() as patch:
        patch.setattr(batch, "decode", lacking)
        outcome = draw(*ARGUMENTS, "-o", "new/", *more)
    assert (outcome.code, outcome.out) == (5, "")
    told, said = outcome.err.splitlines()
    assert said == "Error: no memory"
    return told.removeprefix("The latent is kept: txt2img ")


def test_a_latent_whose_decoding_failed_can_be_decoded(
    draw: Command, command: Command, sd1_folder: Path, monkeypatch: Patch, whole: bytes
) -> None:
    line = unlucky(draw, monkeypatch)
    outcome = command(*line.split(), "-m", str(sd1_folder), "--device", "cpu", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, "new/x-1.png\n", "")
    assert Path("new/x-1.png").read_bytes() == whole
    assert not hidden(Path("new"))


def test_the_next_run_decodes_what_is_kept(draw: Command, monkeypatch: Patch, whole: bytes) -> None:
    unlucky(draw, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(generate.Job, "states", None)  # no step is drawn
        assert draw(*ARGUMENTS, "-o", "new/").code == 0
    assert Path("new/x-1.png").read_bytes() == whole
    assert not hidden(Path("new"))


def test_a_latent_of_another_request_or_software_is_not_taken(folder: Path) -> None:
    import torch

    target = parse("out/", several=True)
    Path("out").mkdir()
    request = Request("x", seed=1)
    item = Item(1, request, "x.png", 1, "0" * 32)
    store = LatentStore(target, Origin("default", "0", {"torch": "1"}))
    x = torch.arange(8.0).reshape(2, 2, 2)
    store.save([item], after_last_step(x))
    taken = store.load(item)
    assert taken is not None and torch.equal(taken, x)
    assert store.load(replace(item, request=replace(request, seed=2))) is None
    assert LatentStore(target, Origin("default", "0", {"torch": "2"})).load(item) is None
    store.delete(item)
    assert store.load(item) is None and not store.left


def test_what_is_not_finite_is_not_kept(folder: Path) -> None:
    import torch

    item = Item(1, Request("x", seed=1), "x.png", 1, "0" * 32)
    store = LatentStore(parse("x.png", several=False), Origin())
    store.save([item], after_last_step(torch.full((1, 1, 1), torch.nan)))
    assert not hidden(folder)


def test_a_second_signal_keeps_the_step(
    draw: Command, command: Command, sd1_folder: Path, monkeypatch: Patch, whole: bytes
) -> None:
    real = generate.Job.states

    def stopping(job: generate.Job) -> Iterator[object]:
        for state in real(job):
            yield state
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(generate.Job, "states", stopping)
        outcome = draw(*ARGUMENTS, "-o", "new/")
    assert outcome.code == 130
    told = outcome.err.splitlines()[0].removeprefix("The latent of step 1 of 2 is kept: txt2img ")
    [path] = hidden(Path("new"))
    assert told == f"decode {path}" and path.suffix == ".partial"
    shown = command(*told.split(), "-m", str(sd1_folder), "--device", "cpu", "-o", "half.png")
    assert shown.out == "half.png\n"
    assert image_file.read(Path("half.png")).request is None  # it is not what its request makes
    assert Path("half.png").read_bytes() != whole


def test_a_finished_picture_leaves_no_partial_one(draw: Command, folder: Path) -> None:
    assert draw(*ARGUMENTS, "-o", "a.png").code == 0
    found = image_file.read(Path("a.png"))
    assert found.request is not None
    item = Item(1, found.request, "x", 1, resume.item_id(found.request, found.origin))
    for partial in (True, False):
        resume.latent_path(folder, item, not partial).write_bytes(b"")
    assert draw(*ARGUMENTS, "-o", "a.png", "--resume").err == ""
    assert not hidden(folder)


def test_latents_can_be_kept_for_good(
    draw: Command, command: Command, sd1_folder: Path, folder: Path, whole: bytes
) -> None:
    assert draw(*ARGUMENTS, "-o", "kept/", "--save-latents").code == 0
    assert [path.name for path in hidden(Path("kept"))] == ["x-1.latent"]
    found = latent_store.read(Path("kept/x-1.latent"))
    assert found.finished and found.request.prompt == "x" and found.x.shape == (4, 16, 16)
    outcome = command("decode", "kept/x-1.latent", "-m", str(sd1_folder), "-o", "b.png")
    assert outcome.out == "b.png\n"
    assert Path("kept/x-1.latent").exists()
    assert draw("x", "--save-latents", "-o", "-").code == 2


def test_what_is_no_latent_is_refused(command: Command, sd1_folder: Path, folder: Path) -> None:
    import torch

    Path("a.latent").write_bytes(b"no")
    assert command("decode", "a.latent").code == 1
    Path("a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert '"a.png" is a PNG picture already' in command("decode", "a.png").err
    latent = Latent(torch.zeros(1, 2, 2), Request("x", seed=1), Origin(), None, "../y.png", 1, 1)
    latent_store.write(latent, Path("b.latent"))
    assert latent_store.read(Path("b.latent")).name == "picture.png"  # leads to no other folder
    broken = replace(latent, request=replace(latent.request, width=64, height=64))
    latent_store.write(broken, Path("c.latent"))
    outcome = command("decode", "c.latent", "-m", str(sd1_folder))
    assert (outcome.code, outcome.out) == (1, "") and "another shape" in outcome.err
    with pytest.raises(BadFile):
        latent_store.read(Path("none.latent"))
