"""info prints what a file contains, for people and as JSON, without control characters."""

import json
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Command
from tests.support import picture_files
from txt2img.images.record import Origin
from txt2img.request import Request, Sampler, Schedule

REQUEST = Request(
    "a cat\nat home",
    "\x1b[31m",
    "m",
    64,
    64,
    3,
    7.5,
    0.0,
    None,
    Sampler.EULER_A,
    Schedule.KARRAS,
    42,
)


def save(name: str) -> None:
    """A picture of that request."""
    picture_files.save(Image.new("RGB", (64, 64)), Path(name), REQUEST, Origin("m", "0123456789"))


def test_a_picture_is_described_in_both_forms(command: Command) -> None:
    save("x.png")
    outcome = command("info", "x.png")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0] == "x.png: a PNG picture, 64x64"
    assert "    a cat" in lines and "    at home" in lines
    assert any(line.startswith("    Steps: 3, Sampler: Euler a, Schedule type") for line in lines)
    assert '      "version": 1,' in lines
    assert "\x1b" not in outcome.out


def test_a_file_that_is_named_like_a_picture_is_judged_as_one(command: Command) -> None:
    Path("x.png").write_text("hello")
    outcome = command("info", "x.png", ".")
    assert outcome.code == 1
    picture, folder = outcome.err.splitlines()
    assert picture == 'Error: "x.png" is not a picture, despite its name'
    assert folder.startswith('Error: "." is no diffusers folder')


def test_json_is_one_line_a_file(command: Command) -> None:
    save("x.png")
    save("y.png")
    outcome = command("info", "--json", "x.png", "y.png")
    first, second = map(json.loads, outcome.out.splitlines())
    assert (first["file"], second["file"]) == ("x.png", "y.png")
    assert first["txt2img"]["request"]["prompt"] == "a cat\nat home"
    assert first["parameters"].startswith("a cat\nat home\nNegative prompt: ")


def test_foreign_pictures_are_described(command: Command) -> None:
    texts = PngInfo()
    texts.add_text("parameters", "x\nSteps: 3, Sampler: PLMS, Seed: 4, Size: 64x64")
    texts.add_text("workflow", "{}")
    Image.new("RGB", (8, 9)).save("x.png", pnginfo=texts)
    out = command("info", "x.png").out
    assert "a PNG picture, 8x9" in out
    assert "PLMS" in out and "workflow" in out


def test_weights_are_described(command: Command, sd1_folder: Path) -> None:
    out = command("info", str(sd1_folder), f"{sd1_folder}.safetensors").out
    assert out.count("prediction  eps") == 2
    assert "layout      diffusers" in out and "layout      original" in out


def test_a_file_that_is_nothing_does_not_hide_the_others(command: Command) -> None:
    save("x.png")
    Path("notes.txt").write_text("hello")
    outcome = command("info", "missing.png", "x.png", "notes.txt")
    assert outcome.code == 1
    assert outcome.out.startswith("x.png: ")
    first, second = outcome.err.splitlines()
    assert first == 'Error: cannot read "missing.png": no such file or directory'
    assert second.startswith("Error: ") and "notes.txt" in second
