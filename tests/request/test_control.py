"""ControlNets in requests: the option's text, JSON, prompt files, sweeps."""

from pathlib import Path

import pytest

from txt2img.errors import BadRequest
from txt2img.request import Request
from txt2img.request.control import Control, ControlRef, parse_control
from txt2img.request.input_image import ImageRef
from txt2img.request.interval import Interval
from txt2img.request.prompt_file import parse_prompts
from txt2img.request.sweep import Sweep


def control(model: str, image: str, weight: float = 1.0, *ends: float, kind: str = "") -> Control:
    interval = Interval(*ends) if ends else Interval(0.0, 1.0)
    return Control(ControlRef(model), ImageRef(image), weight, interval, kind)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canny:a.png", control("canny", "a.png")),
        ("canny:a.png:0.5", control("canny", "a.png", 0.5)),
        ("canny:a.png:0.5:0.1..0.6", control("canny", "a.png", 0.5, 0.1, 0.6)),
        ("canny:a.png:..0.5", control("canny", "a.png", 1.0, 0.0, 0.5)),
        ("canny:1", control("canny", "1")),
        ("union@depth:a.png:2", control("union", "a.png", 2.0, kind="depth")),
        ("union:a.png:depth:0.3", control("union", "a.png", 0.3, kind="depth")),
        ("union:depth:a.png:0.3", control("union", "a.png", 0.3, kind="depth")),
        ("canny:http://host/a.png:0.3", control("canny", "http://host/a.png", 0.3)),
        (
            r"C:\m\c.safetensors:D:\a.png:0.7:0..0.9",
            control(r"C:\m\c.safetensors", r"D:\a.png", 0.7, 0, 0.9),
        ),
        ("a/b@main:c.safetensors:a.png", control("a/b@main:c.safetensors", "a.png")),
    ],
)
def test_an_options_text_is_taken_apart_and_written_again(text: str, expected: Control) -> None:
    assert parse_control(text) == expected
    assert parse_control(str(expected)) == expected


def test_a_pictures_name_may_hold_colons(tmp_path: Path) -> None:
    picture = tmp_path / "a:b.png"
    picture.touch()
    assert parse_control(f"canny:{picture}:0.5") == control("canny", str(picture), 0.5)
    for rest in ("nan", "0,8", "1:-1..1", "1:50%"):  # not a model of that name
        with pytest.raises(BadRequest, match=f'"{rest}" is no WEIGHT'):
            parse_control(f"canny:{picture}:{rest}")
    model = tmp_path / "my:net.safetensors"
    model.touch()
    assert parse_control(f"{model}:gone.png") == control(str(model), "gone.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canny", "--control is MODEL:IMAGE"),
        (":a.png", "--control is MODEL:IMAGE"),
        ("canny:a.png:-1", "weight must be 0 … 100"),
        ("canny:a.png:1:0.9..0.1", "LO < HI"),
    ],
)
def test_broken_texts_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parse_control(text)


def test_records_hold_what_is_not_usual_and_read_it_back() -> None:
    assert "controls" not in Request("x").to_json()
    request = Request("x", controls=(control("canny", "a.png", 0.5),))
    [written] = request.to_json()["controls"]
    assert written == {
        "model": {"name": "canny", "hash": ""},
        "image": {"name": "a.png", "hash": ""},
        "weight": 0.5,
    }
    assert Request.from_json(request.to_json()) == request


def test_an_interval_in_json_is_a_pair_too() -> None:
    one = {"model": "canny", "image": "a.png", "interval": [0, 0.5]}
    [read] = Request.from_json({"prompt": "x", "controls": [one]}).controls
    assert read == control("canny", "a.png", 1.0, 0.0, 0.5)
    with pytest.raises(BadRequest, match="an interval: 5 is not an object"):
        Request.from_json({"prompt": "x", "controls": [one | {"interval": 5}]})


def test_lines_of_all_kinds_name_controls_relative_to_their_file(tmp_path: Path) -> None:
    expected = (
        control("canny", str(tmp_path / "a.png"), 0.5),
        control("depth", str(tmp_path / "b.png")),
    )
    texts = {
        "a.txt": "x --control canny:a.png:0.5 --control depth:b.png",
        "a.jsonl": '{"prompt": "x", "controls": ["canny:a.png:0.5", '
        '{"model": "depth", "image": "b.png"}]}',
        "a.csv": "prompt,control\nx,canny:a.png:0.5|depth:b.png",
    }
    for name, text in texts.items():
        [request] = parse_prompts(text, Request(""), name, folder=tmp_path).requests
        assert request.controls == expected


def test_a_sweep_varies_weight_interval_and_the_controls_themselves() -> None:
    base = [Request("x", controls=(control("canny", "a.png"),))]
    swept = [*Sweep(base, ["control-weight=0..1:0.5", "control-interval=0..0.5,0.5..1"])]
    assert [(one.control_weight, one.control_interval) for one in swept] == [
        (weight, interval) for interval in ("0..0.5", "0.5..1") for weight in ("0", "0.5", "1")
    ]
    swept = [*Sweep(base, ["control=canny:b.png:0.5,depth:c.png"])]
    assert [one.controls[0].model.name for one in swept] == ["canny", "depth"]
    with pytest.raises(BadRequest, match="control-weight needs --control"):
        list(Sweep([Request("x")], ["control-weight=0,1"]))
