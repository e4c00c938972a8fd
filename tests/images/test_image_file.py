"""A picture says how it was made, and no hostile picture does harm by what it says."""

import getpass
import json
import os
import socket
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from txt2img.errors import BadFile, BadOutput
from txt2img.images import image_file
from txt2img.images.image_file import ImageInfo, Origin
from txt2img.request import Request, Sampler, Schedule

IMAGE = Image.linear_gradient("L").convert("RGB").resize((64, 72))
ORIGIN = Origin("sd15", "6ce0161689", {"torch": "2.13.0", "device": "cpu"})
REQUEST = Request(
    "a cat", "blurry", "/home/me/sd15.safetensors", 64, 72, 30, 7.5, 0.0, None,
    Sampler.DPMPP_2M, Schedule.KARRAS, 42,
)  # fmt: skip
NASTY = [
    "",
    " leading and trailing ",
    "two\nlines\r\nand three",
    "Negative prompt: not one",
    "Steps: 1, Sampler: x, Seed: 2",
    "quotes \" and ' and \\ and `",
    "äöü ß €",
    "苹果 りんご",
    "👩\u200d🎨🏴\U000e0067\U000e007f",
    "\u202eright to left",
    "\x1b[31mred\x07",
    "tab\tbell\x7f\x9b",
    "<lora:x:1> (a:1.2) [b|c]",
    "a" * 65_536,
    "苹" * 65_536,
    "\x01" * 65_536,
]


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    check = zlib.crc32(kind + body).to_bytes(4, "big")
    return struct.pack(">I", len(body)) + kind + body + check


def file(*chunks: bytes) -> bytes:
    """A PNG file of 1x1 pixel with more chunks."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\0"))
    return image_file.SIGNATURE + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def read(folder: Path, data: bytes) -> ImageInfo:
    """What a file of those bytes says."""
    path = folder / "x.png"
    path.write_bytes(data)
    return image_file.read(path)


def described(text: str) -> bytes:
    """A PNG file with that text in our chunk."""
    return file(chunk(b"tEXt", b"txt2img\0" + text.encode("ascii")))


@pytest.mark.parametrize("prompt", NASTY)
def test_a_request_comes_back_to_the_letter(tmp_path: Path, prompt: str) -> None:
    request = Request(prompt, prompt, "sd15", 64, 72, 3, seed=2**64 - 1)
    found = read(tmp_path, image_file.encode(IMAGE, request, ORIGIN))
    assert found.request == request
    assert found.notes == ()


def test_both_texts_are_there(tmp_path: Path) -> None:
    found = read(tmp_path, image_file.encode(IMAGE, REQUEST, ORIGIN))
    assert list(found.texts) == ["parameters", "txt2img"]
    assert found.texts["parameters"].startswith(
        "a cat\nNegative prompt: blurry\nSteps: 30, Sampler"
    )
    ours = json.loads(found.texts["txt2img"])
    assert list(ours) == ["version", "request", "model", "environment", "pixels_sha256"]
    assert ours["model"] == {"name": "sd15", "hash": "6ce0161689"}
    assert (found.width, found.height, found.origin) == (64, 72, ORIGIN)


def test_other_programs_find_the_texts_where_they_look(tmp_path: Path) -> None:
    for prompt in ("a cat", "ä 苹"):
        image_file.save(IMAGE, tmp_path / f"{prompt}.png", Request(prompt, seed=1), ORIGIN)
        with Image.open(tmp_path / f"{prompt}.png") as image:
            assert image.info["parameters"].startswith(prompt)
            assert image.tobytes() == IMAGE.tobytes()


def test_the_same_request_gives_the_same_bytes() -> None:
    first = image_file.encode(IMAGE, REQUEST, ORIGIN)
    time.sleep(1.1)
    assert image_file.encode(IMAGE, REQUEST, ORIGIN) == first


def test_no_path_user_host_or_time_is_in_it() -> None:
    data = image_file.encode(IMAGE, REQUEST, ORIGIN)
    for private in ("/home", getpass.getuser(), socket.gethostname(), os.getcwd()):
        assert private.encode() not in data
    assert b"tIME" not in data


def test_save_never_replaces_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    image_file.save(IMAGE, path, REQUEST, ORIGIN)
    with pytest.raises(BadOutput, match="exists"):
        image_file.save(IMAGE, path, REQUEST, ORIGIN)
    image_file.save(IMAGE, path, REQUEST, ORIGIN, overwrite=True)


def test_each_text_is_below_a_mebibyte() -> None:
    request = Request("\x01" * 65_536, "\U0001f34e" * 65_536, seed=1)
    assert len(image_file.encode(IMAGE, request, ORIGIN)) < 2 * 2**20


def test_a_picture_of_a1111_is_understood(tmp_path: Path) -> None:
    texts = PngInfo()
    texts.add_text("parameters", "café\nSteps: 3, Sampler: Euler a, Seed: 4, Size: 64x64, Model: m")
    IMAGE.save(tmp_path / "x.png", pnginfo=texts)
    found = image_file.read(tmp_path / "x.png")
    assert found.request == Request("café", "", "m", 64, 64, 3, sampler=Sampler.EULER_A, seed=4)


@pytest.mark.parametrize("kind", ["raw", "zTXt", "iTXt", "packed"])
def test_a_text_is_found_in_any_kind_of_chunk(tmp_path: Path, kind: str) -> None:
    text = "ä\nSteps: 3, Seed: 4, Size: 64x64".encode()
    data = {
        "raw": chunk(b"tEXt", b"parameters\0" + text),
        "zTXt": chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text)),
        "iTXt": chunk(b"iTXt", b"parameters\0\0\0de\0\0" + text),
        "packed": chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(text)),
    }[kind]
    assert read(tmp_path, file(data)).request == Request("ä", "", "default", 64, 64, 3, seed=4)


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


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_text_that_unpacks_to_a_gigabyte_is_refused_cheaply(tmp_path: Path, kind: bytes) -> None:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(64)) + packer.flush()
    head = b"parameters\0\0" if kind == b"zTXt" else b"parameters\0\1\0\0\0"
    (tmp_path / "x.png").write_bytes(file(chunk(kind, head + packed)))
    tracemalloc.start()
    with pytest.raises(BadFile, match="unpacks to more than 1,048,576 bytes"):
        image_file.read(tmp_path / "x.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_a_huge_text_is_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, file(chunk(b"tEXt", b"parameters\0" + bytes(2**21)))).texts == {}


def test_only_so_many_texts_are_kept(tmp_path: Path) -> None:
    many = [chunk(b"tEXt", b"key%d\0x" % i) for i in range(1000)]
    assert len(read(tmp_path, file(*many)).texts) <= 64


WHOLE = image_file.encode(IMAGE, REQUEST, ORIGIN)


@pytest.mark.parametrize("size", [0, 1, 8, 12, 20, 30, 40, 200, len(WHOLE) - 13, len(WHOLE) - 5])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(BadFile, match="not a whole PNG file"):
        read(tmp_path, WHOLE[:size])


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + bytes(100),
        image_file.SIGNATURE + chunk(b"IEND", b""),
        image_file.SIGNATURE + chunk(b"IHDR", b"\0"),
        WHOLE.replace(b"a cat", b"a dog", 1),
        file(chunk(b"zTXt", b"parameters\0\0nonsense")),
        image_file.SIGNATURE + struct.pack(">I4s", 2**32 - 1, b"IDAT"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadFile, match="not a whole PNG file"):
        read(tmp_path, data)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in (".", "pipe.png", "loop.png", "missing.png"):
        with pytest.raises(BadFile):
            image_file.read(tmp_path / name)
    with pytest.raises(BadFile):
        image_file.read(Path("/dev/zero"))
