"""A picture says how it was made, in a file that is whole or refused."""

import getpass
import json
import os
import socket
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.support import picture_files
from txt2img.errors import BadFile, BadOutput
from txt2img.images import image_file
from txt2img.images.record import ImageInfo, Origin
from txt2img.request import Request, Sampler, Schedule

IMAGE = Image.linear_gradient("L").convert("RGB").resize((64, 72))
ORIGIN = Origin("sd15", "6ce0161689", {"torch": "2.13.0", "device": "cpu"})
REQUEST = Request(
    "a cat", "blurry", "/home/me/sd15.safetensors", 64, 72, 30, 7.5, 0.0, None,
    Sampler.DPMPP_2M, Schedule.KARRAS, 42,
)  # fmt: skip
SIGNATURE = b"\x89PNG\r\n\x1a\n"
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
    return SIGNATURE + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def read(folder: Path, data: bytes) -> ImageInfo:
    """What a file of those bytes says."""
    path = folder / "x.png"
    path.write_bytes(data)
    return image_file.read(path)


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
    picture_files.save(IMAGE, path, REQUEST, ORIGIN)
    with pytest.raises(BadOutput, match="exists"):
        picture_files.save(IMAGE, path, REQUEST, ORIGIN)
    picture_files.save(IMAGE, path, REQUEST, ORIGIN, overwrite=True)


WHOLE = image_file.encode(IMAGE, REQUEST, ORIGIN)


@pytest.mark.parametrize("data", [b"", b"\x89", b"GIF89a" + bytes(100), SIGNATURE[:7]])
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadFile, match="begins like none of PNG, JPEG, WEBP, AVIF"):
        read(tmp_path, data)


def test_a_file_that_is_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    length = 2**31
    with (tmp_path / "x.png").open("wb") as sparse:
        sparse.write(WHOLE[:33] + struct.pack(">I4s", length, b"tEXt"))
        sparse.truncate(length + 100)
    with pytest.raises(BadFile, match="larger than 512 MiB"):
        image_file.read(tmp_path / "x.png")


def test_a_large_picture_is_not_warned_of(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**14, 2**13, 8, 0, 0, 0, 0))
    pixels, end = chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IEND", b"")
    assert read(tmp_path, SIGNATURE + head + pixels + end).height == 2**13
    assert not recwarn.list


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in (".", "pipe.png", "loop.png", "missing.png"):
        with pytest.raises(BadFile):
            image_file.read(tmp_path / name)
    with pytest.raises(BadFile):
        image_file.read(Path("/dev/zero"))
