"""The request in a picture's texts: ours, A1111's, or what is left of them."""

from pathlib import Path

import pytest
from PIL.PngImagePlugin import PngInfo

from tests.images.test_image_file import IMAGE, chunk, file, read
from txt2img.images import image_file
from txt2img.request.request import Request, Sampler


def described(text: str) -> bytes:
    """A PNG file with that text in our chunk."""
    return file(chunk(b"tEXt", b"txt2img\0" + text.encode("ascii")))


def test_a_picture_of_a1111_is_understood(tmp_path: Path) -> None:
    texts = PngInfo()
    texts.add_text("parameters", "café\nSteps: 3, Sampler: Euler a, Seed: 4, Size: 64x64, Model: m")
    IMAGE.save(tmp_path / "x.png", pnginfo=texts)
    found = image_file.read(tmp_path / "x.png")
    assert found.request == Request("café", "", "m", 64, 64, 3, sampler=Sampler.EULER_A, seed=4)


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        "{}",
        "[" * 100_000,
        '{"version": 2}',
        '{"version": 1}',
        '{"version": 1, "request": 3}',
        '{"version": 1, "request": {"prompt": 3}}',
        '{"version": 1, "request": {"prompt": "a", "steps": 1e999}}',
        '{"version": 1, "request": {"prompt": "a", "seed": NaN}}',
        '{"version": 1, "request": {"prompt": "a"}, "model": []}',
        '{"version": 1, "version": 1, "request": {"prompt": "a"}}',
        '{"version": 1, "request": {"prompt": "a", "odd": 1}}',
    ],
)
def test_a_broken_text_is_noted(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, described(text))
    assert found.request is None
    assert len(found.notes) == 1


def test_a_broken_text_leaves_the_other_one(tmp_path: Path) -> None:
    both = file(
        chunk(b"tEXt", b"txt2img\0{"),
        chunk(b"tEXt", b"parameters\0x\nSteps: 3, Seed: 4, Size: 64x64, Version: txt2img 0.1.0"),
    )
    found = read(tmp_path, both)
    assert found.request == Request("x", "", "default", 64, 64, 3, seed=4)
    assert len(found.notes) == 1
