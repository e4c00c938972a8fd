"""upscale makes files larger, keeps what they say, and writes whole files or none."""

import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import Command
from tests.support.upscalers import needs_spandrel, upscaler_file
from txt2img.images import image_file
from txt2img.images.metadata import a1111


def picture(name: str, mode: str = "RGB", size: tuple[int, int] = (20, 12), **texts: str) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.fromarray(levels.squeeze()).save(name, **({"pnginfo": info} if texts else {}))


def size_of(name: str) -> tuple[int, int]:
    with Image.open(name) as image:
        return image.size


def test_an_interpolation_needs_no_model(command: Command) -> None:
    picture("a.png")
    outcome = command("upscale", "a.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, "a-2x.png\n", "")
    with Image.open("a.png") as small, Image.open("a-2x.png") as large:
        theirs = small.resize((40, 24), Image.Resampling.LANCZOS)
        assert np.array_equal(large, theirs)
    assert command("upscale", "a.png", "--scale", "1.5", "-m", "nearest").out == "a-1.5x.png\n"
    assert size_of("a-1.5x.png") == (30, 18)


@needs_spandrel
def test_a_models_scale_is_the_default(command: Command) -> None:
    picture("a.png", "RGBA")
    outcome = command("upscale", "a.png", "-m", str(upscaler_file(4)), "--json", "-o", "b.webp")
    record = json.loads(outcome.out)
    assert (record["path"], record["size"], record["scale"]) == ("b.webp", [80, 48], 4.0)
    with Image.open("b.webp") as image:
        assert image.mode == "RGBA"


def test_a_folder_and_a_pattern_are_drawn_once(command: Command) -> None:
    Path("in").mkdir()
    for name in ("b", "a"):
        picture(f"in/{name}.png")
    assert command("upscale", "in").out == "in/a-2x.png\nin/b-2x.png\n"
    assert command("upscale", "in/", "--resume").out == ""  # nor are results made larger
    assert command("upscale", "in/?.png", "-o", "out/").out == "out/a-2x.png\nout/b-2x.png\n"
    assert command("upscale", "in/", "-o", "n-{index:02}.jpg").out == "n-01.jpg\nn-02.jpg\n"


def test_one_that_fails_does_not_stop_the_others(command: Command) -> None:
    picture("a.png")
    Path("bad.png").write_text("no")
    outcome = command("upscale", "bad.png", "gone.png", "a.png")
    assert (outcome.code, outcome.out) == (1, "a-2x.png\n")
    first, second = outcome.err.splitlines()
    assert first.startswith('Error: "bad.png" is no picture')
    assert second == 'Error: cannot read "gone.png": no such file or directory'


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--scale", "0"], "--scale must be above 0 and at most 16, got 0"),
        (["--tile-size", "7"], "--tile-size must be 0 or 64 … 8,192, got 7"),
        (["-m", "latent"], "latent is for latents, with --hires; choose lanczos, bicubic, nearest"),
        (["-m", "nope"], '--model: no file "nope", and no name that txt2img models list shows'),
        (["x/*.png"], 'no picture matches "x/*.png"'),
        (["--resume", "--overwrite"], "--resume keeps existing pictures, --overwrite replaces"),
        (["a.png", "-o", "-"], "-o - writes one picture to standard output; name a folder"),
        (["-o", "a.jpg"], "it is transparent in parts, which no JPEG can be"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(command: Command, words: list[str], line: str) -> None:
    picture("a.png", "RGBA")
    outcome = command("upscale", "a.png", *words)
    assert outcome.code in (1, 2) and outcome.err.startswith(f"Error: {line}"), outcome.err
    assert outcome.err.count("\n") == 1 and [p.name for p in Path().iterdir()] == ["a.png"]


@needs_spandrel
def test_without_spandrel_the_line_says_how_to_get_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("a.png")
    path = upscaler_file(2)
    for name in [name for name in sys.modules if name.split(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    outcome = command("upscale", "a.png", "-m", str(path))
    assert outcome.code == 1
    assert outcome.err.endswith("need spandrel: pip install --no-deps spandrel einops\n")


def test_our_pictures_record_draws_the_larger_one(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    draw("a cat", "--seed", "7", "-o", "a.png", "-q")
    command("upscale", "a.png", "-m", "bicubic", "--scale", "1.5")
    draw("a cat", "--seed", "7", "-o", "b.png", "-q", "--upscale", "bicubic:1.5")
    assert Path("a-1.5x.png").read_bytes() == Path("b.png").read_bytes()
    verified = command("verify", "a-1.5x.png", "-m", str(sd1_folder))
    assert (verified.code, verified.out) == (0, "a-1.5x.png: identical\n")
    read = image_file.read(Path("b.png"))
    entries = a1111.parse(read.texts["parameters"]).entries
    assert entries["Postprocess upscale by"] == "1.5"
    assert entries["Postprocess upscaler"] == "Bicubic"
    again, notes = a1111.to_request(a1111.parse(read.texts["parameters"]))
    assert (again.upscale, again.upscale_by, notes) == (read.request.upscale, 1.5, [])
    # What was edited between is not claimed to be drawn.
    with Image.open("a.png") as image:
        info = PngInfo()
        for key in ("parameters", "txt2img"):
            info.add_text(key, image.info[key])
        image.point(lambda level: 255 - level).save("edited.png", pnginfo=info)
    command("upscale", "edited.png")
    assert image_file.read(Path("edited-2x.png")).pixels_sha256 == ""


def test_others_metadata_stays_and_the_upscaling_is_added(command: Command) -> None:
    entries = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 20x12, Version: v1.10.1"
    picture("a.png", parameters=f"a cat\nNegative prompt: blurry\n{entries}", workflow="{}")
    picture("b.png", note="mine")
    command("upscale", "a.png", "b.png", "--scale", "3")
    a, b = (image_file.read(Path(f"{name}-3x.png")).texts for name in "ab")
    added = "Postprocess upscale by: 3, Postprocess upscaler: Lanczos"
    assert a["parameters"] == f"a cat\nNegative prompt: blurry\n{entries}, {added}"
    assert a["workflow"] == "{}"
    assert b == {"note": "mine", "postprocessing": added}


def test_standard_input_and_output(folder: Path) -> None:
    picture("a.png")
    done = subprocess.run(
        [sys.executable, "-m", "txt2img", "upscale", "-", "-o", "-"],
        input=Path("a.png").read_bytes(),
        capture_output=True,
        check=True,
    )
    with Image.open(BytesIO(done.stdout)) as image:
        assert image.size == (40, 24)


@needs_spandrel
def test_a_drawing_is_upscaled_by_a_model(
    draw: Command, command: Command, sd1_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = upscaler_file(2)
    outcome = draw("a cat", "--seed", "7", "-o", "a.png", "--upscale", f"{path}:3", "--json")
    assert outcome.code == 0 and size_of("a.png") == (192, 192)
    request = image_file.read(Path("a.png")).request
    assert request and (request.width, str(request.upscale), request.upscale_by) == (
        64, "tiny-2x", 3.0,
    )  # fmt: skip
    assert request.upscale and len(request.upscale.hash) == 10
    missing = command("replay", "a.png", "-m", str(sd1_folder))
    assert 'no upscaler "tiny-2x"' in missing.err
    monkeypatch.setenv("TXT2IMG_MODELS", str(path.parent))
    assert command("verify", "a.png", "-m", str(sd1_folder)).out == "a.png: identical\n"
    shown = command("info", str(path))
    assert shown.out.splitlines()[0] == f"{path}: an upscaler"
    assert "RealESRGAN Compact, 2 times" in shown.out
