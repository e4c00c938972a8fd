"""JPEG, WebP and AVIF pictures of other programs are read by their EXIF data and comments."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import ExifTags, Image, features

from tests.conftest import Command
from tests.images.metadata.test_readers import COMFY, GRAPH, SCREEN
from txt2img.errors import BadFile
from txt2img.images import image_file
from txt2img.request import Request, Sampler

TEXT = "café 苹\nNegative prompt: dull\nSteps: 3, Sampler: Euler a, Seed: 4, Size: 64x64, Model: m"
REQUEST = Request("café 苹", "dull", "m", 64, 64, 3, sampler=Sampler.EULER_A, seed=4)


def save(path: Path, comment: bytes, **more: object) -> None:
    """An 8x8 picture with that user's comment."""
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "x"  # Pillow writes none into an AVIF that has only the comment
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (8, 8)).save(path, exif=exif, **more)


KINDS = ["jpg", "webp", *(["avif"] if features.check("avif") else [])]


@pytest.mark.parametrize("order", ["utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("kind", KINDS)
def test_a1111s_text_is_found(tmp_path: Path, kind: str, order: str) -> None:
    text = f"a{TEXT}" if order == "utf-16-le" else TEXT
    save(tmp_path / f"x.{kind}", b"UNICODE\0" + text.encode(order))
    found = image_file.read(tmp_path / f"x.{kind}")
    assert (found.width, found.height) == (8, 8)
    assert found.request and found.request.negative == "dull"
    assert found.request == REQUEST or order == "utf-16-le"


def test_stable_diffusion_cpps_comment_is_found(tmp_path: Path) -> None:
    comment = b"parameters\0" + TEXT.encode()
    Image.new("RGB", (8, 8)).save(tmp_path / "x.jpg", comment=comment)
    assert image_file.read(tmp_path / "x.jpg").request == REQUEST


def test_stable_diffusion_cpps_packet_is_found(tmp_path: Path) -> None:
    text = TEXT.replace("café", 'café & <a> "b"')
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    packet = (
        '<?xpacket begin=""?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n<rdf:RDF>\n<rdf:Description>\n'
        f"<sdcpp:parameters>{escaped.replace(chr(34), '&quot;')}</sdcpp:parameters>\n"
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "x.webp", xmp=packet.encode())
    assert image_file.read(tmp_path / "x.webp").request == replace(
        REQUEST, prompt='café & <a> "b" 苹'
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "y.webp", xmp=b"<sdcpp:parameters>" * 50_000)
    assert image_file.read(tmp_path / "y.webp").request is None


def test_comfyuis_graph_is_found_in_a_webp(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = f"prompt:{json.dumps(GRAPH)}"
    exif[ExifTags.Base.Make] = f"workflow:{json.dumps(SCREEN)}"
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.webp", exif=exif, save_all=True, append_images=frames[1:])
    assert image_file.read(tmp_path / "x.webp").request == COMFY


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe1\xff\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"x"])
def test_a_broken_file_is_a_bad_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(BadFile):
        image_file.read(tmp_path / "x.jpg")


def test_info_describes_a_jpeg(command: Command) -> None:
    save(Path("x.jpg"), b"UNICODE\0" + TEXT.encode("utf-16-be"))
    out = command("info", "x.jpg").out
    assert out.startswith("x.jpg: a JPEG picture, 8x8\n") and "Sampler: Euler a" in out
    assert "--seed 4" in command("info", "--command", "x.jpg").out
