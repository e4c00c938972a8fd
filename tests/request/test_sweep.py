"""Sweeps: the values that were meant, every pair or side by side, on a sheet that says which."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from txt2img.errors import BadRequest
from txt2img.images import contact_sheet
from txt2img.images.output import parse
from txt2img.request import Request, Sampler
from txt2img.request.adapters import Lora
from txt2img.request.sweep import Sweep, axis

REQUEST = Request("a cat", width=64, height=64, seed=1)


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("cfg=4..10:1.5", "cfg", (4, 5.5, 7, 8.5, 10)),
        ("cfg=0.1..0.3:0.1", "cfg", (0.1, 0.2, 0.3)),
        ("steps=3..1:-1", "steps", (3, 2, 1)),
        ("seed=7..9", "seed", (7, 8, 9)),
        ("cfg=4..5:2", "cfg", (4,)),
        ("--cfg-scale=1,2.5", "cfg", (1, 2.5)),
        ("sampler=euler, DPM++ 2M", "sampler", ("euler", "DPM++ 2M")),
        ("prompt=a cat|a dog, big", "prompt", ("a cat", "a dog, big")),
        ("negative=,blurry", "negative", ("", "blurry")),
        ("prompt=1..3", "prompt", ("1..3",)),
        ("lora=ink:0.4, ink:1:0,none", "loras", ("ink:0.4", "ink:1:0", "none")),
        ("lora=ink|pixel art:0.5", "loras", ("ink", "pixel art:0.5")),
        ("lora=ink:0..1:0.5", "loras", ("ink:0", "ink:0.5", "ink:1")),
    ],
)
def test_values_are_read(text: str, field: str, values: tuple[object, ...]) -> None:
    found = axis(text)
    assert (found.field, found.values) == (field, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cfg", "say OPTION=VALUES"),
        ("count=1,2", r'^--sweep cannot vary "count"'),
        ("model=a,b", "known: prompt, lora, negative, .*tile, "),
        ("cgf=1,2", r"did you mean cfg\?"),
        ("clip_skp=1,2", r"did you mean clip-skip\?"),
        ("cfg=1..x", "a range is like"),
        ("cfg=1..2:0", "other than 0"),
        ("cfg=2..1", "leads nowhere"),
        ("steps=1..9999999", "more than 10,000 values"),
        ("cfg=1,,2", "empty value"),
        ("sampler=eulr", "did you mean euler"),
        ("steps=0,1", "steps must be"),
        ("lora=ink:x", '"x" is no weight'),
        ("lora=ink:1:2:3", "NAME"),
        ("lora=ink,,none", "LoRA"),
    ],
)
def test_what_cannot_be_swept_is_told(text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Sweep([REQUEST], [text])


def pairs(sweep: Sweep) -> list[tuple[float | None, str]]:
    """cfg and sampler of each request."""
    return [(request.cfg, str(request.sampler)) for request in sweep]


def test_all_pairs_are_drawn_row_by_row() -> None:
    sweep = Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"])
    assert pairs(sweep) == [(1.0, "euler"), (2.0, "euler"), (1.0, "heun"), (2.0, "heun")]
    assert sweep.columns == 2
    assert pairs(sweep) == pairs(sweep)


def test_zipped_values_go_together() -> None:
    sweep = Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"], in_step=True)
    assert pairs(sweep) == [(1.0, "euler"), (2.0, "heun")]
    with pytest.raises(BadRequest, match=r"equally many values; got cfg 3, sampler 2"):
        Sweep([REQUEST], ["cfg=1,2,3", "sampler=euler,heun"], in_step=True)


def test_a_sweep_has_bounds() -> None:
    with pytest.raises(BadRequest, match="a sweep of 1,000,000 pictures"):
        Sweep([REQUEST], ["cfg=1..1000", "seed=1..1000"])
    with pytest.raises(BadRequest, match="two sweeps over one option"):
        Sweep([REQUEST], ["cfg=1", "cfg-scale=2"])


def cells() -> list[tuple[Path, Request]]:
    """Four pictures of a sweep, each of its own grey."""
    found = []
    for i, request in enumerate(Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"])):
        Image.new("RGB", (64, 64), (50 * i,) * 3).save(f"{i}.png")
        found.append((Path(f"{i}.png"), request))
    return found


def sheet_of(texts: list[str], requests: list[Request], in_step: bool = False) -> Image.Image:
    """The sheet of a sweep whose pictures are greys, in the order in which they are drawn."""
    sweep = Sweep(requests, texts, in_step)
    found = []
    for i, request in enumerate(sweep):
        Image.new("RGB", (64, 64), (10 * i,) * 3).save(f"{i}.png")
        found.append((Path(f"{i}.png"), request))
    return Image.open(io.BytesIO(contact_sheet.draw(found, sweep)))


def greys(image: Image.Image, left: int, top: int, columns: int, rows: int) -> list[int]:
    """The numbers of the pictures of a block whose first picture has its corner there."""
    step = 64 + contact_sheet.GAP
    points = [
        (left + x * step + 32, top + y * step + 32) for y in range(rows) for x in range(columns)
    ]
    return [image.getpixel(point)[0] // 10 for point in points]  # type: ignore[index]


def ink(image: Image.Image, box: tuple[int, int, int, int]) -> bytes:
    return image.crop(box).convert("L").tobytes()


def test_a_sheet_is_a_grid_whose_columns_and_rows_are_axes(folder: Path) -> None:
    gap, line = contact_sheet.GAP, contact_sheet.LINE
    image = sheet_of(["cfg=1,2,3", "sampler=euler,heun"], [REQUEST])
    margin = image.width - 3 * (64 + gap) - gap  # for the rows' labels
    assert margin > 0 and image.height == gap + line + 2 * (64 + gap)
    left, top = gap + margin, gap + line
    assert greys(image, left, top, 3, 2) == [0, 1, 2, 3, 4, 5]
    heads = [
        ink(image, (left + x * (64 + gap), gap, left + x * (64 + gap) + 64, top)) for x in (0, 1)
    ]
    assert all(min(head) < 100 for head in heads) and heads[0] != heads[1]  # cfg 1, cfg 2
    sides = [
        ink(image, (gap, top + y * (64 + gap), left - gap, top + y * (64 + gap) + 64))
        for y in (0, 1)
    ]
    assert all(min(side) < 100 for side in sides) and sides[0] != sides[1]  # euler, heun
    assert '"cfg": [1, 2, 3]' in image.info["txt2img-sheet"]


def test_seeds_and_further_axes_have_a_block_each(folder: Path) -> None:
    seeds = [replace(REQUEST, seed=seed) for seed in (1, 2)]
    image = sheet_of(["cfg=1,2", "sampler=euler,heun", "steps=3,4"], seeds)
    assert '"blocks": 4' in image.info["txt2img-sheet"]
    gap, line = contact_sheet.GAP, contact_sheet.LINE
    across = 2
    wide, high = (image.width - gap) // across, (image.height - gap) // 2
    margin = wide - 2 * (64 + gap)
    blocks = [
        greys(image, gap + x * wide + margin, gap + y * high + 2 * line, 2, 2)
        for y in range(2)
        for x in range(across)
    ]
    assert blocks == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]


def test_a_picture_that_failed_leaves_its_place_empty(folder: Path) -> None:
    found = cells()
    sweep = Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"])
    whole = Image.open(io.BytesIO(contact_sheet.draw(found, sweep)))
    image = Image.open(io.BytesIO(contact_sheet.draw([found[0], *found[2:]], sweep)))
    assert image.size == whole.size
    corner = image.width - contact_sheet.GAP - 32, contact_sheet.GAP + contact_sheet.LINE + 32
    assert image.getpixel(corner) == contact_sheet.PAPER != whole.getpixel(corner)


def test_a_sweep_in_step_is_a_list_with_every_value(folder: Path) -> None:
    image = sheet_of(["cfg=1,2,3", "sampler=euler,heun,ddim"], [REQUEST], in_step=True)
    gap, line = contact_sheet.GAP, contact_sheet.LINE
    assert image.size == (gap + 3 * (64 + gap), gap + 2 * line + 64 + gap)
    assert greys(image, gap, gap + 2 * line, 3, 1) == [0, 1, 2]


def test_a_table_has_a_line_for_each_picture(folder: Path) -> None:
    axes = Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"]).axes
    rows = list(csv.DictReader(io.StringIO(contact_sheet.table(cells(), axes).decode())))
    assert list(rows[0])[:3] == ["path", "cfg", "sampler"]
    assert [(row["path"], row["cfg"], row["sampler"]) for row in rows] == [
        ("0.png", "1.0", "euler"),
        ("1.png", "2.0", "euler"),
        ("2.png", "1.0", "heun"),
        ("3.png", "2.0", "heun"),
    ]
    assert rows[0]["prompt"] == "a cat"


def test_a_sheet_is_written_once_for_the_same_pictures(folder: Path) -> None:
    sweep = Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"])
    target = parse("./", several=True)
    found = cells()
    first = contact_sheet.write(found, sweep, target)
    assert [path.name for path in first] == ["sheet.png", "sheet.csv"]
    assert contact_sheet.write(found, sweep, target) == first
    other = contact_sheet.write(found[:2], sweep, target)
    assert [path.name for path in other] == ["sheet-2.png", "sheet-2.csv"]
    assert contact_sheet.write([], sweep, target) == []


def test_a_huge_sweep_is_a_sheet_of_bounded_size(folder: Path) -> None:
    big = Request("x" * 60_000, width=1024, height=1024, seed=1, sampler=Sampler.EULER)
    Image.new("RGB", (64, 64)).save("x.png")
    sweep = Sweep([big], ["cfg=1..100", "seed=1..10"])
    many = [(Path("x.png"), request) for request in sweep]
    image = Image.open(io.BytesIO(contact_sheet.draw(many, sweep)))
    assert max(image.size) <= contact_sheet.SIDE_MAX


def test_loras_take_the_place_of_the_same_at_another_strength() -> None:
    base = replace(REQUEST, loras=(Lora("ink", 0.9), Lora("light")))
    worn = [request.loras for request in Sweep([base], ["lora=ink:0.2:0,none,pixels"])]
    assert worn == [
        (Lora("light"), Lora("ink", 0.2, 0.0)),
        base.loras,
        (*base.loras, Lora("pixels")),
    ]


def test_a_sheet_says_which_lora_it_was(tmp_path: Path) -> None:
    sweep = Sweep([REQUEST], ["lora=none,ink:0.5"])
    cells = []
    for number, request in enumerate(sweep):
        Image.new("RGB", (64, 64), "white").save(tmp_path / f"{number}.png")
        cells.append((tmp_path / f"{number}.png", request))
    rows = list(csv.DictReader(io.StringIO(contact_sheet.table(cells, sweep.axes).decode())))
    assert [row["loras"] for row in rows] == ["", "ink:0.5"]
    with Image.open(io.BytesIO(contact_sheet.draw(cells, sweep))) as drawn:
        left, right = (drawn.crop((x, 8, x + 64, 24)).tobytes() for x in (8, 80))
    assert left != right
