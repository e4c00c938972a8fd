"""No hostile PNG does harm by its texts, and those of any program are found."""

import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.images.test_image_file import IMAGE, ORIGIN, SIGNATURE, WHOLE, chunk, file, read
from tests.support import picture_files
from txt2img.errors import BadFile
from txt2img.images import image_file
from txt2img.request.request import Request


def test_other_programs_find_the_texts_where_they_look(tmp_path: Path) -> None:
    for prompt in ("a cat", "ä 苹"):
        picture_files.save(IMAGE, tmp_path / f"{prompt}.png", Request(prompt, seed=1), ORIGIN)
        with Image.open(tmp_path / f"{prompt}.png") as image:
            assert image.info["parameters"].startswith(prompt)
            assert image.tobytes() == IMAGE.tobytes()


def test_each_text_is_below_a_mebibyte() -> None:
    request = Request("\x01" * 65_536, "\U0001f34e" * 65_536, seed=1)
    assert len(image_file.encode(IMAGE, request, ORIGIN)) < 2 * 2**20


@pytest.mark.parametrize("kind", ["raw", "zTXt", "iTXt", "packed"])
def test_a_text_is_found_in_any_kind_of_chunk(tmp_path: Path, kind: str) -> None:
    text = "ä\nSteps: 3, Seed: 4, Size: 64x64".encode()
    data = {
        "raw": chunk(b"tEXt", b"parameters\0" + text),
        "zTXt": chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text)),
        "iTXt": chunk(b"iTXt", b"parameters\0\0\0de\0\0" + text),
        "packed": chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(text)),
    }[kind]
    assert read(tmp_path, file(data)).request == Request("ä", "", "", 64, 64, 3, seed=4)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_text_that_unpacks_to_a_gigabyte_is_refused_cheaply(tmp_path: Path, kind: bytes) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    head = b"parameters\0\0" if kind == b"zTXt" else b"parameters\0\1\0\0\0"
    (tmp_path / "x.png").write_bytes(file(chunk(kind, head + packed)))
    tracemalloc.start()
    with pytest.raises(BadFile, match="Decompressed data too large"):
        image_file.read(tmp_path / "x.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_a_huge_text_is_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, file(chunk(b"tEXt", b"parameters\0" + bytes(2**21)))).texts == {}


def test_only_so_many_texts_are_kept(tmp_path: Path) -> None:
    many = [chunk(b"tEXt", b"key%d\0x" % i) for i in range(1000)]
    assert len(read(tmp_path, file(*many)).texts) <= 64


@pytest.mark.parametrize("size", [8, 12, 20, 30, 40, 200, len(WHOLE) - 13, len(WHOLE) - 5])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadFile, match="not a whole PNG file"):
        read(tmp_path, WHOLE[:size])


@pytest.mark.parametrize(
    "data",
    [
        SIGNATURE + chunk(b"IEND", b""),
        SIGNATURE + chunk(b"IHDR", b"\0"),
        WHOLE.replace(b"a cat", b"a dog", 1),
        SIGNATURE + struct.pack(">I4s", 2**32 - 1, b"IDAT"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadFile, match="not a whole PNG file"):
        read(tmp_path, data)


def test_a_text_that_cannot_be_unpacked_is_no_text(tmp_path: Path) -> None:
    assert not read(tmp_path, file(chunk(b"zTXt", b"parameters\0\0nonsense"))).texts.get(
        "parameters"
    )


def test_texts_behind_the_pixels_are_found(tmp_path: Path) -> None:
    """Where ImageMagick writes them."""
    text = chunk(b"tEXt", b"parameters\0x\nSteps: 3, Seed: 4, Size: 64x64")
    plain = file()
    found = read(tmp_path, plain[:-12] + text + plain[-12:])
    assert found.request == Request("x", "", "", 64, 64, 3, seed=4)
