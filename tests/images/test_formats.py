"""Pictures as JPEG, WebP and AVIF: smaller, and they say all that a PNG says."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import ExifTags, Image, features
from sd_parsers import ParserManager

from tests.cli.test_errors import nothing_in, refused
from tests.conftest import Command
from tests.images.test_exif import KINDS
from tests.images.test_image_file import IMAGE, NASTY, ORIGIN, REQUEST
from txt2img.cli.run_options import StdoutOutput
from txt2img.errors import BadRequest
from txt2img.images import formats, image_file
from txt2img.images.formats import FORMATS, PNG, Format
from txt2img.images.resume import item_id, picture_id

SMALL = ("-q", "--steps", "1", "--seed", "1")
FORMS = [FORMATS["jpeg" if kind == "jpg" else kind] for kind in KINDS]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


def decoded(data: bytes) -> Image.Image:
    """The picture in a file's bytes."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@each_form
def test_a_request_comes_back_to_the_letter(tmp_path: Path, form: Format) -> None:
    path = tmp_path / f"x{form.suffix}"
    for prompt in (*(text for text in NASTY if len(text) < 1000), "{a|b}", '{"a": 1}'):
        request = replace(REQUEST, prompt=prompt, negative=prompt, model="sd15")
        path.write_bytes(image_file.encode(IMAGE, request, ORIGIN, 7, form))
        found = image_file.read(path)
        assert (found.request, found.origin, found.first_seed) == (request, ORIGIN, 7)
        assert (found.width, found.height, found.notes) == (64, 72, ())
        assert found.pixels_sha256 == hashlib.sha256(IMAGE.tobytes()).hexdigest()


@each_form
def test_the_texts_are_those_of_a_png(tmp_path: Path, form: Format) -> None:
    for name, its in (("x.png", PNG), (f"x{form.suffix}", form)):
        (tmp_path / name).write_bytes(image_file.encode(IMAGE, REQUEST, ORIGIN, None, its))
    assert (
        image_file.read(tmp_path / f"x{form.suffix}").texts
        == image_file.read(tmp_path / "x.png").texts
    )


@each_form
def test_the_comment_is_as_a1111_writes_it(form: Format) -> None:
    data = image_file.encode(IMAGE, replace(REQUEST, prompt="café 苹"), ORIGIN, None, form)
    image = decoded(data)
    held = image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert image.format == form.name
    assert held.startswith(b"UNICODE\0\0c\0a\0f\0\xe9")
    assert "Steps: 30, Sampler: DPM++ 2M" in held[8:].decode("utf-16-be")


@each_form
def test_the_same_request_gives_the_same_bytes(form: Format) -> None:
    first, second = (image_file.encode(IMAGE, REQUEST, ORIGIN, None, form) for _ in range(2))
    assert first == second


@each_form
def test_a_lower_quality_is_smaller_and_less_near(form: Format) -> None:
    noisy = Image.effect_noise((64, 72), 60).convert("RGB")
    files = [
        image_file.encode(noisy, REQUEST, ORIGIN, None, replace(form, quality=quality))
        for quality in (10, 50, 95)
    ]
    assert len(files[0]) < len(files[1]) < len(files[2])


def test_webp_of_all_quality_loses_nothing() -> None:
    form = replace(FORMATS["webp"], quality=100)
    data = image_file.encode(IMAGE, REQUEST, ORIGIN, None, form)
    assert decoded(data).convert("RGB").tobytes() == IMAGE.tobytes()


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_public_parser_reads_what_we_write(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x{FORMATS[kind].suffix}"
    path.write_bytes(image_file.encode(IMAGE, REQUEST, ORIGIN, None, FORMATS[kind]))
    found = ParserManager().parse(path)
    assert found is not None
    [sampler] = found.samplers
    assert [str(one) for one in sampler.prompts] == ["a cat"]
    assert [str(one) for one in sampler.negative_prompts] == ["blurry"]
    assert str(sampler.parameters["seed"]) == "42"


def test_a_jpeg_says_when_a_prompt_is_too_long_for_it(tmp_path: Path) -> None:
    origin = replace(ORIGIN, environment={**ORIGIN.environment, "vae": "tiled, cpu"})
    for size in range(20_000, 24_000, 300):
        request = replace(REQUEST, prompt="a" * size)
        try:
            image_file.check_record_fits(request, ORIGIN, FORMATS["jpeg"])
        except BadRequest as error:
            assert "choose --format png or webp" in str(error)
            break
        image_file.encode(IMAGE, request, origin, 2**64 - 1, FORMATS["jpeg"])  # what is told fits
    else:
        pytest.fail("none was too long")
    for form in (PNG, FORMATS["webp"]):
        image_file.check_record_fits(replace(REQUEST, prompt="苹" * 65_536), ORIGIN, form)


@each_form
def test_a_picture_has_its_id_in_every_format(tmp_path: Path, form: Format) -> None:
    path = tmp_path / f"x{form.suffix}"
    path.write_bytes(image_file.encode(IMAGE, REQUEST, ORIGIN, None, form))
    assert picture_id(path, ORIGIN) == item_id(REQUEST, ORIGIN)


def test_the_command_writes_resumes_and_replays_it(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    line = ("a cat", *SMALL, "--count", "2", "--resume", "-o", "new/", "--format", "webp")
    paths = draw(*line).out.split()
    assert paths == ["new/a-cat-1.webp", "new/a-cat-2.webp"]
    first = Path(paths[0]).read_bytes()
    Path(paths[1]).unlink()
    assert draw(*line).out.split() == paths[1:]
    assert Path(paths[0]).read_bytes() == first
    again = command("replay", paths[0], "-m", str(sd1_folder), "-q", "-o", "again.png")
    assert again.code == 0
    drawn = image_file.read(Path("again.png"))
    assert drawn.pixels_sha256 == image_file.read(Path(paths[0])).pixels_sha256
    assert draw(*line[:-1], "png").out.split() == ["new/a-cat-1.png", "new/a-cat-2.png"]


def test_a_stream_has_the_format_too(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with StdoutOutput(FORMATS["webp"]) as target:
        data = image_file.encode(IMAGE, REQUEST, ORIGIN, None, target.format)
        target.write_as(data, "-")
    assert decoded(capfdbinary.readouterr().out).format == "WEBP"


def test_a_sweep_ends_in_a_sheet_of_that_format(draw: Command) -> None:
    line = ("a", *SMALL, "--sweep", "cfg=1,2", "-o", "new/", "--format", "webp", "--quality", "50")
    paths = draw(*line).out.split()
    assert paths == ["new/a-1-1.0.webp", "new/a-1-2.0.webp", "new/sheet.webp", "new/sheet.csv"]
    swept = json.loads(image_file.read(Path(paths[2])).texts["txt2img-sheet"])
    assert swept["swept"] == {"cfg": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("x --format gif", 'no format "gif"; choose from png, jpeg, webp, avif'),
        ("x --format jpeg -o x.png", "give one of them"),
        ("x --quality 50", "png has none"),
        ("x --quality 50 -o x.png", "png has none"),
        ("x --quality 0 --format webp", "1 … 100"),
        ("x --quality best --format webp", "whole number"),
        ("x -o x.gif", "png, jpeg, webp, avif"),
    ],
)
def test_what_cannot_be_is_refused(command: Command, folder: Path, line: str, part: str) -> None:
    refused(command(*line.split()), 2, part)
    assert nothing_in(folder)


def test_a_config_gives_way_to_a_files_name(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("txt2img").mkdir()
    Path("txt2img/config.toml").write_text('[defaults]\nformat = "webp"\nquality = 50\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", ".")
    line = ("x", "--seed", "1", "--dry-run", "-q")
    assert command(*line).out.startswith("x-1.webp\t")
    assert command(*line, "-o", "y.png").out.startswith("y.png\t")


def test_a_format_that_is_not_there_is_told_before_all_else(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    refused(command("x", "--format", "avif"), 2, "this Pillow writes no AVIF")
    refused(command("x", "-o", "x.webp"), 2, "this Pillow writes no WEBP")
    assert command("x", "--dry-run", "-q").code == 0
    assert nothing_in(folder)
    formats.check_writable(formats.PNG)
