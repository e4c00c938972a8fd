"""verify draws a picture again: the same bits, or how far apart and why."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Command, Outcome
from tests.support import picture_files
from txt2img.images import image_file
from txt2img.images.formats import PNG
from txt2img.images.record import Origin, metadata
from txt2img.pipeline.verify import differences, psnr


@pytest.fixture
def check(command: Command, draw: Command, sd1_folder: Path) -> Callable[..., Outcome]:
    """Draws x.png, and verifies files by the tiny model."""
    assert draw("a cat", "-q", "--seed", "7", "--steps", "1", "-o", "x.png").code == 0
    return lambda *words: command("verify", *words, "-m", str(sd1_folder))


def test_a_picture_that_can_be_drawn_again_is_identical(check: Callable[..., Outcome]) -> None:
    outcome = check("x.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, "x.png: identical\n", "")


def test_a_difference_is_measured_and_explained(check: Callable[..., Outcome]) -> None:
    found = image_file.read(Path("x.png"))
    assert found.request
    with Image.open("x.png") as image:
        pixels = image.convert("RGB")
    near = pixels.point(lambda level: min(level + 1, 255))
    then = replace(found.origin, hash="0123456789", environment={"torch": "1.0"})
    picture_files.save(near, Path("y.png"), found.request, then)
    outcome = check("y.png", "x.png", "--json")
    assert outcome.code == 1
    verdict, same = map(json.loads, outcome.out.splitlines())
    assert (verdict["same"], same["same"], same["psnr"]) == (False, True, None)
    assert verdict["psnr"] == pytest.approx(psnr(pixels, near), abs=0.01)
    assert verdict["reasons"][0] == f"model 0123456789 then, {found.origin.hash} now"
    assert any(reason.startswith("torch 1.0 then, ") for reason in verdict["reasons"])
    assert check("y.png", "--psnr", "30").code == 0
    assert check("y.png", "--psnr", "90").out.startswith("y.png: PSNR 4")


def test_changes_are_reported(check: Callable[..., Outcome]) -> None:
    with Image.open("x.png") as image:
        texts = PngInfo()
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


def test_in_a_folder_every_change_is_found(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    line = ("a cat", "-q", "--seed", "7", "--steps", "1", "--sweep", "cfg=1..20", "-o", "art/")
    assert draw(*line).code == 0  # with a sheet, which is passed over
    verify = ("verify", "art", "-m", str(sd1_folder))
    outcome = command(*verify)
    assert (outcome.code, outcome.err) == (0, "20 identical\n")
    assert outcome.out.count(": identical\n") == 20
    with Image.open("art/a-cat-7-3.0.png") as image:
        texts = {key: image.info[key] for key in ("parameters", "txt2img")}
        image.putpixel((5, 5), tuple(level ^ 1 for level in image.getpixel((5, 5))))
        Path("art/a-cat-7-3.0.png").write_bytes(image_file.encode_texts(image, texts, PNG))
    outcome = command(*verify)
    assert (outcome.code, outcome.out.count(": identical\n")) == (1, 19)
    assert 'a-cat-7-3.0.png" was changed: its pixels' in outcome.err
    assert outcome.err.endswith("not comparable\n") and "19 identical" in outcome.err


@pytest.mark.parametrize(("old", "new"), [('"seed": 7', '"seed": 8'), ("Seed: 7", "Seed: 8")])
def test_a_parameter_that_was_changed_is_found(
    check: Callable[..., Outcome], old: str, new: str
) -> None:
    found = image_file.read(Path("x.png"))
    assert any(old in text for text in found.texts.values())
    texts = {key: text.replace(old, new) for key, text in found.texts.items()}
    with Image.open("x.png") as image:
        Path("x.png").write_bytes(image_file.encode_texts(image, texts, PNG))
    outcome = check("x.png")
    assert outcome.code == 1 and "its two texts do not say the same" in outcome.err


def test_both_texts_changed_alike_are_found_by_drawing(check: Callable[..., Outcome]) -> None:
    found = image_file.read(Path("x.png"))
    assert found.request
    other = replace(found.request, seed=8)
    texts = metadata(other, found.origin, found.pixels_sha256)
    with Image.open("x.png") as image:
        Path("x.png").write_bytes(image_file.encode_texts(image, texts, PNG))
    outcome = check("x.png")
    assert outcome.code == 1 and "x.png: PSNR" in outcome.out


def test_lossy_formats_are_compared_by_psnr_only(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    assert draw("a cat", "-q", "--seed", "7", "--steps", "1", "-o", "x.jpg").code == 0
    verify = ("verify", "x.jpg", "-m", str(sd1_folder))
    outcome = command(*verify)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is lossy, so it cannot be identical; try --psnr 30" in outcome.err
    outcome = command(*verify, "--psnr", "20")
    assert outcome.code == 0 and "before encoding, the pixels are identical" in outcome.out
    assert command(*verify, "--psnr", "90").code == 1


def test_a_folder_without_pictures_is_reported(command: Command) -> None:
    Path("empty").mkdir()
    outcome = command("verify", "empty")
    assert (outcome.code, outcome.err) == (2, 'Error: "empty" has no pictures\n')


def test_a_picture_of_another_model_needs_its_name(
    command: Command, check: Callable[..., Outcome]
) -> None:
    outcome = command("verify", "x.png")
    assert outcome.code == 2 and 'drawn by the model "tiny-sd1"; give its --model' in outcome.err


def test_the_measure_is_psnr() -> None:
    a, b = (Image.new("RGB", (4, 4), (level,) * 3) for level in (100, 110))
    assert psnr(a, b) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(a, a) == math.inf


def test_a_difference_without_a_reason_is_reported_as_such() -> None:
    origin = Origin("m", "0", {"torch": "2"})
    assert differences(origin, origin) == (
        "nothing that the record tells: another processor, or threads",
    )


def test_another_number_of_threads_is_a_reason() -> None:
    old, one, two = (Origin("m", "0", t) for t in ({}, {"threads": "1"}, {"threads": "2"}))
    assert differences(one, two) == ("another number of threads: 1 then, 2 now",)
    assert differences(old, two) == differences(two, two)  # earlier versions recorded none


def test_a_record_tells_the_threads_and_a_slower_layout(
    command: Command, draw: Command, sd1_folder: Path
) -> None:
    import torch

    drawn = ("a cat", "-q", "--seed", "7", "--steps", "1")
    assert draw(*drawn, "-o", "x.png").code == 0
    usual = image_file.read(Path("x.png")).origin.environment
    assert usual["threads"] == str(torch.get_num_threads())
    assert not [name for name in usual if "layout" in name]
    assert draw(*drawn, "--no-optimize", "-o", "y.png").code == 0
    plain = image_file.read(Path("y.png")).origin.environment
    assert {name: plain[name] for name in plain if "layout" in name} == {
        "U-Net layout": "plain",
        "vae layout": "plain",
    }


def test_pictures_are_compared_with_all_that_they_were_drawn_with(
    command: Command, draw: Command, sd1_folder: Path
) -> None:
    import torch

    from tests.support import tiny
    from tests.support.adapters import ATTENTION, kohya, pairs, write

    torch.manual_seed(1)
    write(Path("style.safetensors"), kohya(pairs(tiny.sd1().unet, ATTENTION)))
    vae = {name: 0.9 * value for name, value in tiny.sd1().vae.state_dict().items()}
    write(Path("soft.safetensors"), vae)
    files = (
        *("--lora", "style.safetensors:0.5", "--vae", "soft.safetensors"),
        *("--refiner", str(tiny.sd1().file)),
    )
    assert draw("a cat", "-q", "--seed", "7", *files, "-o", "x.png").code == 0
    verify = ("verify", "x.png", "-m", str(sd1_folder))
    same = command(*verify, *files)
    assert (same.code, same.out) == (0, "x.png: identical\n"), same.err
    for lacking in (files[2:], (*files[:2], *files[4:]), files[:4]):
        refused = command(*verify, *lacking)
        assert (refused.code, refused.out) == (1, "") and refused.err.count("\n") == 1
        assert "give it" in refused.err
