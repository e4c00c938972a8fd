"""verify draws a picture again: the same bits, or how far apart and why."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command, Outcome
from PIL import Image

from txt2img import png
from txt2img.verify import psnr, reasons


@pytest.fixture
def check(command: Command, draw: Command, sd1_folder: Path) -> Callable[..., Outcome]:
    """Draws x.png, and verifies files by the tiny model."""
    assert draw("a cat", "-q", "--seed", "7", "--steps", "1", "-o", "x.png").code == 0
    return lambda *words: command("verify", *words, "-m", str(sd1_folder))


def test_a_picture_that_can_be_drawn_again_is_identical(check: Callable[..., Outcome]) -> None:
    outcome = check("x.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, "x.png: identical\n", "")


def test_what_differs_is_measured_and_explained(check: Callable[..., Outcome]) -> None:
    found = png.read(Path("x.png"))
    assert found.request
    with Image.open("x.png") as image:
        pixels = image.convert("RGB")
    near = pixels.point(lambda level: min(level + 1, 255))
    then = replace(found.origin, hash="0123456789", environment={"torch": "1.0"})
    png.save(near, Path("y.png"), found.request, then)
    outcome = check("y.png", "x.png", "--json")
    assert outcome.code == 1
    verdict, same = map(json.loads, outcome.out.splitlines())
    assert (verdict["same"], same["same"], same["psnr"]) == (False, True, None)
    assert verdict["psnr"] == pytest.approx(psnr(pixels, near), abs=0.01)
    assert verdict["reasons"][0] == f"model 0123456789 then, {found.origin.hash} now"
    assert any(reason.startswith("torch 1.0 then, ") for reason in verdict["reasons"])
    assert check("y.png", "--psnr", "30").code == 0
    assert check("y.png", "--psnr", "90").out.startswith("y.png: PSNR 4")


def test_what_was_changed_is_told(check: Callable[..., Outcome]) -> None:
    with Image.open("x.png") as image:
        texts = png.PngInfo()
        for key in ("txt2img", "parameters"):
            texts.add_itxt(key, image.info[key])
        Image.new("RGB", image.size).save("pixels.png", pnginfo=texts)
        image.resize((8, 8)).save("size.png", pnginfo=texts)
        image.save("bare.png")
    assert "its pixels are not those of its record" in check("pixels.png").err
    assert "not the size that its record says" in check("size.png").err
    outcome = check("bare.png", "x.png")
    assert (outcome.code, outcome.out) == (2, "x.png: identical\n")
    assert "no hash of its pixels" in outcome.err


def test_a_picture_of_another_model_needs_its_name(
    command: Command, check: Callable[..., Outcome]
) -> None:
    outcome = command("verify", "x.png")
    assert outcome.code == 2 and 'drawn by the model "tiny-sd1"; give its --model' in outcome.err


def test_the_measure_is_psnr() -> None:
    a, b = (Image.new("RGB", (4, 4), (level,) * 3) for level in (100, 110))
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(a, a) == math.inf


def test_without_a_reason_it_is_said_so() -> None:
    origin = png.Origin("m", "0", {"torch": "2"})
    assert reasons(origin, origin) == (
        "nothing that the record tells: another processor, or threads",
    )
