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


def test_a_sheet_shows_every_picture_under_its_label(folder: Path) -> None:
    axes = Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"]).axes
    image = Image.open(io.BytesIO(contact_sheet.draw(cells(), axes, 2)))
    across, down = 64 + contact_sheet.GAP, 64 + 2 * contact_sheet.LINE + contact_sheet.GAP
    assert image.size == (2 * across + contact_sheet.GAP, 2 * down + contact_sheet.GAP)
    centres = [
        image.getpixel(
            (
                contact_sheet.GAP + x * across + 32,
                contact_sheet.GAP + y * down + 2 * contact_sheet.LINE + 32,
            )
        )
        for y in range(2)
        for x in range(2)
    ]
    assert centres == [(50 * i,) * 3 for i in range(4)]
    caption = image.crop(
        (contact_sheet.GAP, contact_sheet.GAP, across, contact_sheet.GAP + 2 * contact_sheet.LINE)
    ).convert("L")
    other = image.crop(
        (
            across + contact_sheet.GAP,
            contact_sheet.GAP,
            2 * across,
            contact_sheet.GAP + 2 * contact_sheet.LINE,
        )
    )
    assert min(caption.tobytes()) < 100  # ink
    assert caption.tobytes() != other.convert("L").tobytes()  # cfg 1, cfg 2
    assert '"cfg": [1, 2]' in image.info["txt2img-sheet"]


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
    axes = Sweep([REQUEST], ["cfg=1,2", "sampler=euler,heun"]).axes
    target = parse("./", several=True)
    found = cells()
    first = contact_sheet.write(found, axes, target, 2)
    assert [path.name for path in first] == ["sheet.png", "sheet.csv"]
    assert contact_sheet.write(found, axes, target, 2) == first
    other = contact_sheet.write(found[:2], axes, target, 2)
    assert [path.name for path in other] == ["sheet-2.png", "sheet-2.csv"]
    assert contact_sheet.write([], axes, target, 2) == []


def test_a_huge_sweep_is_a_sheet_of_bounded_size(folder: Path) -> None:
    big = Request("x" * 60_000, width=1024, height=1024, seed=1, sampler=Sampler.EULER)
    Image.new("RGB", (64, 64)).save("x.png")
    axes = Sweep([REQUEST], ["cfg=1..100"]).axes
    image = Image.open(io.BytesIO(contact_sheet.draw([(Path("x.png"), big)] * 100, axes, 100)))
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
    with Image.open(io.BytesIO(contact_sheet.draw(cells, sweep.axes, 2))) as drawn:
        left, right = (drawn.crop((x, 8, x + 64, 24)).tobytes() for x in (8, 80))
    assert left != right
