"""A picture beside the prompt, on the command line: found, told, recorded, replayed, refused."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_errors import nothing_in, refused
from tests.conftest import Command
from tests.support import tiny


@pytest.fixture
def picture(folder: Path) -> Path:
    """A picture in a folder of its own, and a mask."""
    place = folder / "in"
    place.mkdir()
    image = Image.new("RGB", (64, 72), (200, 30, 60))
    image.paste((20, 160, 40), (0, 0, 30, 20))
    image.save(place / "a.png")
    mask = Image.new("L", (64, 72))
    mask.paste(255, (40, 40, 64, 72))
    mask.save(place / "mask.png")
    return place / "a.png"


@pytest.fixture
def paint(command: Command, sd1_folder: Path) -> Command:
    """Draws with the tiny model in two steps."""

    def run(*arguments: str):  # type: ignore[no-untyped-def]
        return command("-m", str(sd1_folder), "--steps", "2", "--seed", "1", *arguments)

    return run


def test_a_picture_keeps_its_size_and_is_recorded_by_name_and_hash(
    paint: Command, picture: Path
) -> None:
    out = paint("x", "-i", str(picture), "-o", "b.png", "--json").out
    assert json.loads(out)["size"] == [64, 72]
    with Image.open("b.png") as image:
        record = json.loads(image.info["txt2img"])["request"]
        text = image.info["parameters"]
    assert record["image"]["name"] == "a.png" and len(record["image"]["hash"]) == 64
    assert record["strength"] == 0.75 and "Denoising strength: 0.75" in text
    assert str(picture.parent) not in json.dumps(record) + text


@pytest.mark.parametrize("alias", ["--init-img", "--init_image", "--image"])
def test_other_programs_names(paint: Command, picture: Path, alias: str) -> None:
    line = ("x", alias, str(picture), "--denoising-strength", "0.5", "--dry-run", "--json", "-q")
    assert paint(*line).code == 0


def test_replay_and_verify_find_the_picture_by_its_hash(
    paint: Command, command: Command, picture: Path, sd1_folder: Path
) -> None:
    mask = picture.with_name("mask.png")
    line = ("x", "-i", str(picture), "--mask", str(mask), "--strength", "0.5", "-o", "b.png")
    assert paint(*line).code == 0
    model = ("-m", str(sd1_folder))
    missing = command("verify", "b.png", *model, "-q")
    assert missing.code == 1 and 'no picture "a.png" whose pixels have the hash' in missing.err
    assert command("verify", "b.png", *model, "--image-dir", "in").out == "b.png: identical\n"
    picture.rename("renamed.png")
    mask.rename("m.png")
    assert command("replay", "b.png", *model, "--image-dir", ".", "-o", "c.png").code == 0
    assert Path("b.png").read_bytes() == Path("c.png").read_bytes()
    Path("renamed.png").rename("a.png")  # beside the picture
    Path("m.png").rename("mask.png")
    assert command("verify", "b.png", *model).code == 0


def test_resume_knows_a_picture_by_what_it_began_from(paint: Command, picture: Path) -> None:
    line = ("x", "-i", str(picture), "-o", "out/", "--resume")
    assert paint(*line).code == 0
    assert "1 of 1 pictures are there already" in paint(*line).err
    renamed = picture.rename(picture.with_name("other.png"))
    assert "1 of 1" in paint("x", "-i", str(renamed), "-o", "out/", "--resume").err
    Image.new("RGB", (64, 72)).save(renamed)
    assert paint("x", "-i", str(renamed), "-o", "out/", "--resume").out != ""


def test_a_sweep_of_strengths(paint: Command, picture: Path) -> None:
    out = paint("x", "-i", str(picture), "--sweep", "strength=0.5,1", "-o", "out/").out
    assert len(out.split()) == 4  # two pictures, the sheet, the table


def test_only_masked_needs_no_number_and_gives_the_whole_picture(
    paint: Command, picture: Path
) -> None:
    mask = str(picture.with_name("mask.png"))
    line = ("--only-masked", "x", "-i", str(picture), "--mask", mask, "-W", "64", "-H", "64")
    assert paint(*line, "-o", "b.png").code == 0
    with Image.open("b.png") as image, Image.open(picture) as given:
        assert json.loads(image.info["txt2img"])["request"]["only_masked"] == 32
        assert image.size == given.size
        assert image.crop((0, 0, 28, 28)).tobytes() == given.crop((0, 0, 28, 28)).tobytes()


def test_standard_input_to_standard_output(picture: Path, sd1_folder: Path) -> None:
    command = [sys.executable, "-m", "txt2img", "x", "-m", str(sd1_folder), "--steps", "1"]
    done = subprocess.run(
        [*command, "--image", "-", "-o", "-", "--seed", "1"],
        input=picture.read_bytes(),
        capture_output=True,
        check=True,
    )
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert image.size == (64, 72)
        name = json.loads(image.info["txt2img"])["request"]["image"]["name"]
    assert name == "standard input"


def test_a_dry_run_needs_no_torch(picture: Path, sd1_folder: Path) -> None:
    code = (
        "import sys; from txt2img.cli import app; "
        f"app.run(['x', '-m', {str(sd1_folder)!r}, '-i', {str(picture)!r}, '--dry-run']); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_users_get_wrong_is_one_line(paint: Command, folder: Path, picture: Path) -> None:
    Path("in/text.png").write_text("no picture")
    Path("in/empty.png").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save("in/huge.png")
    good = str(picture)
    for code, line, part in (
        (1, ("-i", "no.png"), 'cannot read "no.png": no such file'),
        (1, ("-i", "in/text.png"), "is no picture"),
        (1, ("-i", "in/empty.png"), "is empty"),
        (1, ("-i", "in/huge.png"), "pixels"),
        (1, ("-i", good, "--mask", "no.png"), 'cannot read "no.png"'),
        (2, ("--mask", good), "need --image"),
        (2, ("-i", good, "--strength", "1.5"), "strength must be 0 … 1, got 1.5"),
        (2, ("-i", good, "--strength", "abc"), '--strength must be a number, got "abc"'),
        (2, ("-i", good, "--strength", "nan"), "strength must be 0 … 1"),
        (2, ("-i", good, "--resize", "fit"), "choose from crop, fill, stretch"),
        (2, ("-i", good, "--only-masked"), "--only-masked needs a mask"),
        (2, ("-i", good, "--outpaint", "up"), "outpaint is all=128"),
        (2, ("-i", good, "--outpaint", "all=12"), "a multiple of 8"),
        (2, ("-i", good, "--inpaint-fill", "red"), "choose from original, fill, noise, zero"),
    ):
        refused(paint("x", "-q", "-o", "new/", *line), code, part)
    assert not Path("new").exists() or nothing_in(Path("new"))


@pytest.mark.parametrize(
    ("image", "note"),
    [
        (Image.new("CMYK", (64, 64)), ""),
        (Image.new("I;16", (64, 64)), ""),
        (Image.new("RGB", (1, 1)), "drawn at 64x64"),
        (Image.new("RGB", (70, 66)), "has 70x66 pixels; it is drawn at 72x64"),
        (Image.new("RGBA", (64, 64), (9, 9, 9, 0)), "the transparent part"),
    ],
    ids=["cmyk", "16 bit", "1x1", "odd", "transparent"],
)
def test_odd_pictures_are_drawn_and_told(
    paint: Command, folder: Path, image: Image.Image, note: str
) -> None:
    name = "a.tif" if image.mode == "CMYK" else "a.png"
    image.save(name)
    outcome = paint("x", "-i", name, "--strength", "0.5", "-o", "b.png")
    assert outcome.code == 0 and note in outcome.err


def test_a_model_of_edits_needs_a_picture_and_draws_with_one(
    command: Command, picture: Path
) -> None:
    model = ("-m", str(tiny.pix2pix().folder), "--steps", "1", "-q", "--seed", "1")
    refused(command("make it snow", *model, "-o", "b.png"), 2, "give one with --image")
    assert command("make it snow", *model, "-o", "b.png", "-i", str(picture)).code == 0


def test_options_that_change_nothing_are_told(draw: Command) -> None:
    line = ("--strength", "0.5", "--mask-blur", "2", "--preprocess", "canny", "--steps", "3")
    told = draw("x", *line, "--dry-run").err
    assert "--strength changes nothing without --image" in told
    assert "--mask-blur changes nothing without --image" in told
    assert "--preprocess changes nothing without --control" in told
    assert "steps changes" not in told
    assert "changes nothing" not in draw("x", "--dry-run").err
