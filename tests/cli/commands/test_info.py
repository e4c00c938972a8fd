"""info prints what a file contains, for people and as JSON, without control characters."""

import json
from dataclasses import replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Command
from tests.support import picture_files
from txt2img.images.record import Origin
from txt2img.request import Request, Sampler, Schedule
from txt2img.request.input_image import ImageRef, Margins

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


def test_what_a_picture_began_from_is_told(command: Command) -> None:
    start, mask = ImageRef("a.png", "0" * 64), ImageRef("m.png", "1" * 64)
    request = replace(REQUEST, image=start, strength=0.5, mask=mask, mask_invert=True)
    request = replace(request, outpaint=Margins(left=64))
    picture_files.save(Image.new("RGB", (64, 64)), Path("x.png"), request, Origin("m", "01"))
    [line] = [row for row in command("info", "x.png").out.splitlines() if "began" in row]
    assert line == (
        '  began from  "a.png" (hash 000000000000), strength 0.5; mask: "m.png" '
        "(hash 111111111111), inverted; outpainted by left=64"
    )
    texts = PngInfo()
    entries = "Steps: 3, Sampler: Euler, Seed: 4, Size: 64x64, Denoising strength: 0.5"
    texts.add_text("parameters", f"a cat\n{entries}")
    Image.new("RGB", (64, 64)).save("y.png", pnginfo=texts)
    assert "began from  a picture that the record does not name, strength 0.5\n" in (
        command("info", "y.png").out
    )
    assert "--image IMAGE " in command("info", "--command", "y.png").out


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
