"""--hires from the command line: equal to its two steps by hand, and at home in every feature."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Command
from tests.support import tiny, tiny_transformers
from tests.support.upscalers import needs_spandrel, upscaler_file
from txt2img.images import image_file

HIRES = ("a cat", "--seed", "7", "--hires-strength", "0.5", "-q")


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.array(image)


@pytest.mark.parametrize("upscaler", ["lanczos", "bicubic"])
def test_it_is_what_three_commands_draw(draw: Command, command: Command, upscaler: str) -> None:
    draw("a cat", "--seed", "7", "-q", "-o", "small.png")
    command("upscale", "small.png", "-m", upscaler, "--scale", "1.5", "-o", "large.png")
    draw(
        "a cat", "--seed", "7", "-q", "--image", "large.png", "--strength", "0.5",
        "-W", "96", "-H", "96", "-o", "hand.png",
    )  # fmt: skip
    draw(*HIRES, "--hires", f"1.5:{upscaler}", "-o", "hires.png")
    assert np.array_equal(pixels("hires.png"), pixels("hand.png"))


@needs_spandrel
def test_a_models_file_enlarges_the_first_pass(draw: Command, command: Command) -> None:
    path = str(upscaler_file(2))
    draw("a cat", "--seed", "7", "-q", "-o", "small.png")
    command("upscale", "small.png", "-m", path, "-o", "large.png")
    draw("a cat", "--seed", "7", "-q", "--image", "large.png", "--strength", "0.5",
         "-W", "128", "-H", "128", "-o", "hand.png")  # fmt: skip
    draw(*HIRES, "--hires", f"2:{path}", "-o", "hires.png")
    assert np.array_equal(pixels("hires.png"), pixels("hand.png"))
    request = image_file.read(Path("hires.png")).request
    assert request and str(request.hires_upscaler) == "tiny-2x"
    assert request.hires_upscaler and len(request.hires_upscaler.hash) == 10


def test_records_are_verified_and_replayed(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    assert draw(*HIRES, "--hires", "96x80", "--hires-steps", "2", "-o", "a.png").code == 0
    assert pixels("a.png").shape == (80, 96, 3)
    model = ("-m", str(sd1_folder))
    assert command("verify", "a.png", *model).out == "a.png: identical\n"
    command("replay", "a.png", *model, "-o", "b.png", "-q")
    assert np.array_equal(pixels("b.png"), pixels("a.png"))
    # A1111's text alone says as much, but for whose rules those are that fill its gaps.
    info = image_file.read(Path("a.png"))
    with Image.open("a.png") as image:
        from PIL.PngImagePlugin import PngInfo

        only = PngInfo()
        only.add_text("parameters", info.texts["parameters"])
        image.save("theirs.png", pnginfo=only)
    command("replay", "theirs.png", *model, "-o", "c.png", "-q")
    assert np.array_equal(pixels("c.png"), pixels("a.png"))
    line = command("info", "--command", "a.png").out
    assert "--hires-width 96 --hires-height 80" in line and "--hires-steps 2" in line
    off = command("replay", "a.png", *model, "-o", "d.png", "-q", "--hires", "none")
    assert off.code == 0 and pixels("d.png").shape == (64, 64, 3)


def test_a_batch_is_resumed_and_swept(draw: Command) -> None:
    words = ("a cat", "--seed", "7", "-q", "--hires", "1.5", "--count", "2", "-o", "out/")
    assert draw(*words).code == 0
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    (Path("out") / "a-cat-8.png").unlink()
    again = draw(*words, "--resume")
    assert again.out == "out/a-cat-8.png\n"
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == first
    swept = draw(
        "a cat", "--seed", "7", "-q", "--hires", "1.5", "-o", "sweep/",
        "--sweep", "hires-strength=0,0.5", "--sweep", "hires-upscaler=latent,lanczos",
    )  # fmt: skip
    assert len(swept.out.splitlines()) == 4 + 2
    names = {path.name for path in Path("sweep").iterdir()}
    assert "a-cat-7-hires-strength0-hires-upscalerlanczos.png" in names


def test_latents_are_saved_at_their_size_and_decoded(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    draw(*HIRES, "--hires", "1.5", "--save-latents", "-o", "a.png")
    done = command("decode", "a.latent", "-m", str(sd1_folder), "-o", "b.png")
    assert done.code == 0, done.err
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_progress_and_previews_run_over_both_passes(draw: Command) -> None:
    done = draw(*HIRES, "--hires", "1.5", "--save-steps", "--preview-every", "1", "-o", "a.png")
    assert done.code == 0, done.err
    steps = sorted(path.name for path in Path().iterdir() if "step" in path.name)
    assert len(steps) == 3 and all(pixels(name).shape == (96, 96, 3) for name in steps)


def test_a_dry_run_says_what_both_passes_are(draw: Command) -> None:
    record = json.loads(draw(*HIRES, "--hires", "2", "--dry-run", "--json").out)
    assert (record["size"], record["final_size"]) == ([64, 64], [128, 128])
    shown = draw(
        "a cat", "--seed", "7", "--hires", "2:latent", "--hires-strength", "0.5", "--dry-run"
    )
    assert "64x64 pixels, 2 steps" in shown.err
    assert "then 128x128 by latent, 1 step" in shown.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--hires", "two"], '--hires is like 2 or 1.5:lanczos, got "two"'),
        (["--hires", "2:lantcos"], '--hires: no file "lantcos"'),
        (["--hires", "99"], "hires must be 0 … 8, got 99"),
        (["--hires-size", "big"], "--hires-size is like 1024x768"),
        (
            ["--hires-strength", "0.4"],
            "hires-strength is of a second pass: say with hires how many",
        ),
        (["--hires", "2", "--hires-strength", "1.5"], "hires-strength must be 0 … 1, got 1.5"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(draw: Command, words: list[str], line: str) -> None:
    outcome = draw("a cat", "--seed", "7", *words, "-o", "out/")
    assert outcome.code in (1, 2) and outcome.err.startswith(f"Error: {line}"), outcome.err
    assert outcome.err.count("\n") == 1 and not Path("out").exists()


def test_a_prompt_file_may_ask_for_it_a_line(draw: Command) -> None:
    Path("lines.txt").write_text(
        "a cat --seed 7 --hires 1.5 --hires-upscaler lanczos --hires-strength 0.5\na cat --seed 8\n"
    )
    draw("--prompts", "lines.txt", "-q", "-o", "out/")
    assert [pixels(f"out/a-cat-{seed}.png").shape[0] for seed in (7, 8)] == [96, 64]
    draw(*HIRES, "--hires", "1.5:lanczos", "-o", "one.png")
    assert np.array_equal(pixels("out/a-cat-7.png"), pixels("one.png"))
    one, line = (image_file.read(Path(p)).request for p in ("one.png", "out/a-cat-7.png"))
    assert one == line and replace(one, hires=None) != one  # type: ignore[type-var]


@pytest.mark.parametrize(("model", "upscaler"), [("sd1", "latent"), ("inpaint", "lanczos")])
def test_outside_a_mask_a_larger_picture_has_the_pixels_of_its_start(
    command: Command, model: str, upscaler: str
) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(levels).save("a.png")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (64, 0, 128, 128))
    mask.save("m.png")
    files = ("-m", str(getattr(tiny, model)().folder), "--image", "a.png", "--mask", "m.png")
    size = ("-W", "64", "-H", "64", "--hires", f"2:{upscaler}", "--seed", "1", "--steps", "4")
    outcome = command("a cat", *files, *size, "-q", "-o", "b.png")
    assert outcome.code == 0, outcome.err
    with Image.open("b.png") as image:
        drawn = np.array(image)
    assert drawn.shape == (128, 128, 3)
    assert np.array_equal(drawn[:, :30], levels[:, :30])  # the border is 8 pixels soft
    assert np.abs(drawn[:, 64:].astype(int) - levels[:, 64:]).mean() > 20
    replayed = command("verify", "b.png", *files[:2])
    assert replayed.out == "b.png: identical\n", replayed.err


@pytest.mark.parametrize("model", [tiny.pix2pix, tiny_transformers.flux_depth])
def test_models_that_see_a_picture_in_every_step_see_it_larger(
    command: Command, model: Callable[[], tiny.Tiny | tiny_transformers.TinyTransformer]
) -> None:
    levels = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(levels).save("a.png")
    Image.fromarray(255 - levels).save("b.png")
    options = ("-m", str(model().folder), "--hires", "2", "--steps", "2", "--seed", "1", "-q")
    for name in "ab":
        outcome = command("a cat", *options, "--image", f"{name}.png", "-o", f"{name}-2.png")
        assert outcome.code == 0, outcome.err
    assert pixels("a-2.png").shape == (128, 128, 3)
    assert np.abs(pixels("a-2.png").astype(int) - pixels("b-2.png")).mean() > 1
