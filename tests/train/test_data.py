"""Pictures and captions read from folders and archives."""

import io
import json
import os
import random
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.peak import peak
from tests.support.pictures_data import archive
from txt2img.errors import BadFile
from txt2img.train import data
from txt2img.train.data import (
    ImageCache,
    Pictures,
    drop_captions,
    random_crop,
    shuffled_indices,
    to_unit_range,
)


def folder(path: Path, *rows: object) -> Path:
    path.mkdir(exist_ok=True)
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(path / "clear.png")
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return path


def test_an_archive_and_its_folder_read_alike(tmp_path: Path) -> None:
    packed = archive(tmp_path / "data.zip")
    with zipfile.ZipFile(packed) as file:
        file.extractall(tmp_path / "data")
    one, other = Pictures(packed), Pictures(tmp_path / "data")
    assert one.rows == other.rows
    assert torch.equal(one.pixels(3, 32), other.pixels(3, 32))


def test_transparent_pictures_lie_on_white_or_on_their_background(tmp_path: Path) -> None:
    rows = [
        {"file_name": "clear.png", "text": "nothing"},
        {"file_name": "clear.png", "text": "nothing on blue", "background": "#0000ff"},
    ]
    pictures = Pictures(folder(tmp_path / "d", *rows))
    assert torch.equal(pictures.pixels(0, 8), torch.ones(3, 8, 8))
    blue = torch.tensor([-1.0, -1.0, 1.0])[:, None, None].expand(3, 8, 8)
    assert torch.equal(pictures.pixels(1, 8), blue)


def test_painted_pictures_are_kept_as_far_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(archive(tmp_path / "data.zip"))
    painted: list[int] = []
    paint = pictures.scene
    monkeypatch.setattr(
        pictures, "scene", lambda row, size: painted.append(size) or paint(row, size)
    )
    kept = ImageCache(pictures, 32, room=2 * 3 * 32 * 32)
    for _ in range(2):
        got = [to_unit_range(pixels) for pixels in kept([5, 6, 5, 7])]
    assert all(map(torch.equal, got, [pictures.pixels(row, 32) for row in (5, 6, 5, 7)]))
    assert len(painted) - 4 == 3 + 1  # three at first, and then the one there was no room for


def test_a_fingerprint_differs_where_pictures_do(tmp_path: Path) -> None:
    one, same = (Pictures(archive(tmp_path / f"{n}.zip")) for n in range(2))
    other = Pictures(archive(tmp_path / "other.zip", size=16))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    loose = folder(tmp_path / "d", {"file_name": "clear.png", "text": "nothing"})
    first = Pictures(loose).fingerprint()
    Image.new("RGBA", (9, 9)).save(loose / "clear.png")
    assert Pictures(loose).fingerprint() != first


def test_captions_are_drawn_by_their_weights(tmp_path: Path) -> None:
    row = {"file_name": "clear.png", "text": ["often", "never", "seldom"], "weights": [0.9, 0, 0.1]}
    pictures, rng = Pictures(folder(tmp_path / "d", row)), random.Random(0)
    drawn = [pictures.caption(0, rng) for _ in range(1000)]
    assert "never" not in drawn
    assert 50 < drawn.count("seldom") < 150


def squares(path: Path, **row: object) -> torch.Tensor:
    """A row's 8×8 picture, (8, 8, 3) of 0 or 1, where red.png is a red square."""
    path.mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 255)).save(path / "red.png")
    pictures = Pictures(folder(path, {"file_name": "red.png", "text": "x", **row}))
    return (pictures.pixels(0, 8).permute(1, 2, 0) + 1.0) / 2.0


def test_layers_are_laid_where_they_say_in_their_hue(tmp_path: Path) -> None:
    left = {"file_name": "red.png", "top": 0.25, "side": 0.5}
    right = {"file_name": "red.png", "left": 0.5, "top": 0.25, "side": 0.5, "hue": 1 / 3}
    pixels = squares(tmp_path / "d", layers=[left, right], background="#0000ff")
    assert pixels[2:6, :4].eq(torch.tensor([1.0, 0.0, 0.0])).all()
    assert pixels[2:6, 4:, 1].gt(0.95).all() and pixels[2:6, 4:, 0].lt(0.05).all()
    assert pixels[:2].eq(torch.tensor([0.0, 0.0, 1.0])).all()
    assert torch.equal(pixels[:2], pixels[6:])


def test_a_mirrored_layer_shows_what_was_left_on_the_right(tmp_path: Path) -> None:
    half = Image.new("RGBA", (8, 8))
    half.paste((0, 0, 255, 255), (0, 0, 4, 8))
    layers = [{"file_name": "half.png"}]
    rows = [{"layers": layers}, {"layers": [{**layers[0], "mirrored": True}]}]
    source = folder(
        tmp_path / "d", *({"file_name": "half.png", "text": "x", **row} for row in rows)
    )
    half.save(source / "half.png")
    plain, mirrored = (Pictures(source).pixels(row, 8) for row in range(2))
    assert torch.equal(mirrored, plain.flip(2))
    assert not torch.equal(mirrored, plain)


def test_a_background_goes_from_colour_to_colour_downwards(tmp_path: Path) -> None:
    tiny = [{"file_name": "red.png", "side": 0.125}]
    pixels = squares(tmp_path / "d", layers=tiny, background=["#000000", "#ffffff"])
    column = pixels[:, 5, 0]
    assert column[0] < 0.1 and column[-1] > 0.9
    assert column.diff().gt(0).all()


def test_plain_rows_are_whole_pictures_on_white(tmp_path: Path) -> None:
    rows = [
        {"file_name": "clear.png", "text": "a"},
        {"file_name": "clear.png", "text": "a", "background": "#FFFFFF"},
        {"file_name": "clear.png", "text": "a", "background": "#ff0000"},
        {
            "file_name": "clear.png",
            "text": "a",
            "layers": [{"file_name": "clear.png", "side": 0.5}],
        },
        {"file_name": "clear.png", "text": "a", "layers": [{"file_name": "clear.png", "hue": 0.5}]},
        {"file_name": "clear.png", "text": "a", "layers": [{"file_name": "clear.png"}] * 2},
    ]
    pictures = Pictures(folder(tmp_path / "d", *rows))
    assert [row.plain for row in pictures.rows] == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 1"),
        ({"text": "no file"}, "file_name"),
        ({"file_name": "../../etc/passwd", "text": "x"}, "leads out"),
        ({"file_name": "/etc/passwd", "text": "x"}, "leads out"),
        ({"file_name": "clear.png", "text": ["a", "b"], "weights": [1]}, "2 captions but 1"),
        ({"file_name": "clear.png", "text": "x", "background": "blau"}, "no colour"),
        ({"file_name": "clear.png", "text": "x", "background": []}, "background is"),
        ({"file_name": "c.png", "text": "x", "layers": [{"file_name": "/etc/x"}]}, "leads out"),
        ({"file_name": "c.png", "text": "x", "layers": [{"left": 0.5}]}, "file_name"),
        ({"file_name": "c.png", "text": "x", "layers": [{"file_name": "c", "up": 1}]}, "left, top"),
        (
            {"file_name": "c.png", "text": "x", "layers": [{"file_name": "c", "left": 0.5}]},
            "beyond",
        ),
        ({"file_name": "c.png", "text": "x", "layers": [{"file_name": "c", "side": 0}]}, "beyond"),
    ],
)
def test_a_bad_row_is_one_line_that_says_where(tmp_path: Path, row: object, told: str) -> None:
    with pytest.raises(BadFile, match=told) as caught:
        Pictures(folder(tmp_path / "d", row))
    assert "\n" not in str(caught.value)


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    pictures = Pictures(folder(tmp_path / "d", {"file_name": "gone.png", "text": "x"}))
    with pytest.raises(BadFile, match=r"gone\.png"):
        pictures.pixels(0, 8)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_data_without_rows_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadFile, match="training data"):
        Pictures(tmp_path / name)


def test_every_round_sees_every_row_once_in_another_order() -> None:
    first, second = shuffled_indices(10, 0, 10, seed=1), shuffled_indices(10, 10, 10, seed=1)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_indices_do_not_depend_on_how_they_are_asked_for() -> None:
    whole = shuffled_indices(7, 0, 30, seed=2)
    assert [i for start in range(0, 30, 5) for i in shuffled_indices(7, start, 5, seed=2)] == whole


def test_a_cut_out_is_a_part_of_the_picture() -> None:
    pixels = torch.arange(36.0).view(1, 6, 6)
    part = random_crop(pixels, 2, random.Random(0))
    assert part.shape == (1, 2, 2)
    assert part[0, 0, 1] - part[0, 0, 0] == 1
    assert part[0, 1, 0] - part[0, 0, 0] == 6
    assert torch.equal(random_crop(pixels, 6, random.Random(0)), pixels)


def test_captions_are_dropped_at_the_given_rate() -> None:
    kept = drop_captions(["x"] * 10_000, 0.1, random.Random(0))
    assert 900 < kept.count("") < 1100
    assert drop_captions(["x"], 0.0, random.Random(0)) == ["x"]


def packed(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip archive."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


LINE = b'{"file_name": "a.png", "text": "x"}\n'


def png(side: int) -> bytes:
    """A small file of a picture of that side."""
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "png")
    return content.getvalue()


def bombs(place: Path) -> Iterator[tuple[str, Path]]:
    """Data sets that take more memory than any machine should give, or that never end."""
    zeros = bytes(2**26 + 2**24)
    yield "metadata", packed(place / "m.zip", {"metadata.jsonl": zeros * 2})
    yield "picture", packed(place / "p.zip", {"metadata.jsonl": LINE, "a.png": zeros})
    yield "pixels", packed(place / "x.zip", {"metadata.jsonl": LINE, "a.png": png(12_000)})
    yield "line", packed(place / "l.zip", {"metadata.jsonl": b'{"a": "' + bytes(2**22) + b'"}'})
    yield "deep", packed(place / "d.zip", {"metadata.jsonl": b"[" * 100_000})
    for name, target in (("zero", "/dev/zero"), ("self", "a.png")):
        linked = folder(place / name, {"file_name": "a.png", "text": "x"})
        (linked / "a.png").symlink_to(target)
        yield name, linked
    pipe = folder(place / "fifo", {"file_name": "a.png", "text": "x"})
    os.mkfifo(pipe / "a.png")
    yield "fifo", pipe
    os.mkfifo(place / "fifo.zip")
    yield "archive", place / "fifo.zip"
    (place / "lines").mkdir()
    (place / "lines" / "metadata.jsonl").symlink_to("/dev/zero")
    yield "lines", place / "lines"


def test_no_data_set_takes_all_memory_or_all_time(tmp_path: Path) -> None:
    for kind, source in bombs(tmp_path):
        before, start = peak(), time.monotonic()
        with pytest.raises(BadFile) as caught:
            Pictures(source).pixels(0, 8)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400, kind
        assert peak() - before < 300, kind
        assert time.monotonic() - start < 20, kind


def test_large_pictures_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"file_name": "a.png", "text": "x"}] * 8
    pictures = Pictures(folder(tmp_path / "d", *rows))
    (tmp_path / "d" / "a.png").write_bytes(png(200))
    monkeypatch.setattr(data, "LARGE", 100)
    at_once, most, convert = 0, 0, Image.Image.convert

    def counted(self: Image.Image, *rest: object, **more: object) -> Image.Image:
        nonlocal at_once, most
        if self.mode != "1":
            return convert(self, *rest, **more)
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.01)
        at_once -= 1
        return convert(self, *rest, **more)

    monkeypatch.setattr(Image.Image, "convert", counted)
    pictures.paint_all(pictures.rows, 8)
    assert most == 1


def broken_archives(place: Path) -> Iterator[tuple[str, Path]]:
    """Archives that zipfile cannot read, or only in part."""
    good = packed(place / "g.zip", {"metadata.jsonl": LINE, "a.png": png(8)})
    whole = good.read_bytes()
    for name, at, value in (
        ("encrypted", 6, b"\x01\x00"),  # the flag of each file's header
        ("method", 8, b"\x63\x00"),
        ("version", 4, b"\xff\x00"),
    ):
        changed = bytearray(whole)
        for sign, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            start = whole.find(sign)
            while start >= 0:
                changed[start + at + shift : start + at + shift + 2] = value
                start = whole.find(sign, start + 1)
        (place / f"{name}.zip").write_bytes(changed)
        yield name, place / f"{name}.zip"
    for cut in (10, len(whole) // 2, len(whole) - 3):
        (place / f"{cut}.zip").write_bytes(whole[:cut])
        yield f"cut at {cut}", place / f"{cut}.zip"
    chance = random.Random(1)
    for seed in range(60):
        changed = bytearray(whole)
        for _ in range(4):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        (place / f"r{seed}.zip").write_bytes(changed)
        yield f"random {seed}", place / f"r{seed}.zip"


def test_broken_archives_are_refused_in_one_line(tmp_path: Path) -> None:
    refused = set()
    for kind, source in broken_archives(tmp_path):
        try:
            Pictures(source).pixels(0, 8)
        except BadFile as error:
            assert "\n" not in str(error), kind
            refused.add(kind)
    assert {"encrypted", "method", "version", "cut at 10"} <= refused and len(refused) > 30


@pytest.mark.parametrize(
    "row",
    [
        {"file_name": "a.png", "text": 7},
        {"file_name": "a.png", "text": []},
        {"file_name": "a.png", "text": ["x", None]},
        {"file_name": "a.png", "text": "x", "weights": 3},
        {"file_name": "a.png", "text": "x", "weights": [0]},
        {"file_name": "a.png", "text": "x", "weights": ["a"]},
        {"file_name": "a.png", "text": "x", "weights": [10**400]},
        {"file_name": "a.png", "text": "x", "background": 3},
        {"file_name": "a.png", "text": "x", "layers": 3},
        {"file_name": "a.png", "text": "x", "layers": [7]},
        {"file_name": "a.png", "text": "x", "layers": [{"file_name": "a.png", "left": 10**400}]},
        {"file_name": 7, "text": "x", "layers": [{"file_name": "a.png", "hue": [1]}]},
        "[1]",
        "NaN",
        "[" * 100_000,
        '{"file_name": "a.png", "text": "x", "kind": ' + "9" * 5000 + "}",
    ],
)
def test_rows_of_wrong_kinds_are_bad_files(tmp_path: Path, row: object) -> None:
    with pytest.raises(BadFile, match="line 1"):
        Pictures(folder(tmp_path / "d", row))
