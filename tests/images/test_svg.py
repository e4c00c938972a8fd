"""SVG pictures: a picture's shapes, its transparency and its texts survive tracing."""

import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image, ImageChops, ImageDraw

from tests.cli.test_errors import refused
from tests.conftest import Command
from tests.images.test_formats import SMALL
from txt2img.errors import BadFile, BadRequest
from txt2img.images import formats, image_file, svg
from txt2img.images.formats import FORMATS
from txt2img.images.record import Origin
from txt2img.request import Request, Sampler

pytest.importorskip("vtracer")
resvg = pytest.importorskip("resvg_py")
REQUEST = Request("café 苹 <b>&\x1b", "dull", "m", 64, 64, 3, sampler=Sampler.EULER_A, seed=4)


def flag(mode: str = "RGB") -> Image.Image:
    """A red disc and a blue bar on white, or on nothing."""
    image = Image.new(mode, (64, 64), "white" if mode == "RGB" else (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, 40, 40), "red")
    draw.rectangle((20, 48, 60, 58), "blue")
    return image


def drawn(data: bytes, mode: str) -> Image.Image:
    """The pixels of a file, by another program's renderer."""
    png = bytes(resvg.svg_to_bytes(svg_string=data.decode()))
    return Image.open(io.BytesIO(png)).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_shapes_are_the_pictures(mode: str) -> None:
    image = flag(mode)
    data = image_file.encode(image, REQUEST, Origin(), None, FORMATS["svg"])
    assert data == image_file.encode(image, REQUEST, Origin(), None, FORMATS["svg"])
    assert ElementTree.fromstring(data).get("viewBox") == "0 0 64 64"
    again = drawn(data, mode)
    assert again.size == image.size
    missed = ImageChops.difference(image.convert("RGB"), again.convert("RGB")).convert("L")
    off = sum(missed.point(lambda d: d > 64).histogram()[1:])
    assert off < 0.02 * 64 * 64  # single pixels along the edges
    if mode == "RGBA":
        missed = ImageChops.difference(image.getchannel("A"), again.getchannel("A"))
        assert sum(missed.point(lambda d: d > 128).histogram()[1:]) < 0.02 * 64 * 64
    assert 2 <= svg.count_paths(data) <= 12


def test_its_record_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    path.write_bytes(image_file.encode(flag(), REQUEST, Origin("m"), None, FORMATS["svg"]))
    info = image_file.read(path)
    assert info.request == REQUEST
    assert (info.width, info.height) == (64, 64)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<?xml version='1.0'?><html/>", "no <svg>"),
        ("<svg ><t:texts>{nonsense</t:texts></svg>", "not a whole SVG"),
        ('<svg ><t:texts>{"a": 1}</t:texts></svg>', "its texts are broken"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "x.svg").write_text(text)
    with pytest.raises(BadFile, match=what):
        image_file.read(tmp_path / "x.svg")


def test_another_programs_file_has_a_size_and_no_texts(tmp_path: Path) -> None:
    text = '<?xml version="1.0"?>\n<!-- me -->\n<svg width="12.5px" height="7"><path d=""/></svg>'
    (tmp_path / "x.svg").write_text(text)
    info = image_file.read(tmp_path / "x.svg")
    assert (info.width, info.height, info.texts, info.request) == (12, 7, {}, None)


def test_without_the_tracer_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(BadRequest, match=r"pip install vtracer"):
        formats.check_writable(FORMATS["svg"])


def test_the_command_writes_resumes_and_replays_it(
    draw: Command, command: Command, sd1_folder: Path
) -> None:
    line = ("a cat", *SMALL, "--count", "2", "--resume", "-o", "new/", "--format", "svg")
    paths = draw(*line).out.split()
    assert paths == ["new/a-cat-1.svg", "new/a-cat-2.svg"]
    assert draw(*line).out.split() == []
    assert "an SVG picture, 64x64, " in command("info", paths[0]).out
    assert command("replay", paths[0], "-m", str(sd1_folder), "-q", "-o", "again.png").code == 0
    drawn = image_file.read(Path("again.png"))
    assert drawn.pixels_sha256 == image_file.read(Path(paths[0])).pixels_sha256
    refused(command("verify", paths[0], "-m", str(sd1_folder)), 2, "traced into shapes")


def test_a_sweep_ends_in_a_table_alone(draw: Command) -> None:
    line = ("a", *SMALL, "--sweep", "cfg=1,2", "-o", "new/", "--format", "svg")
    paths = draw(*line).out.split()
    assert paths == ["new/a-1-1.0.svg", "new/a-1-2.0.svg", "new/sheet.csv"]
