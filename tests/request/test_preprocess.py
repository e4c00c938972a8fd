"""Preprocessors in a request: their text, their numbers, other programs' names for them."""

from dataclasses import asdict

import pytest

from txt2img.errors import BadRequest
from txt2img.images.metadata.a1111_control import control_entries
from txt2img.request import Request
from txt2img.request.preprocess import (
    Preprocessor,
    parse_preprocess,
    preprocess_from_json,
    preprocesses_from_json,
)
from txt2img.request.prompt_file import parse_prompts


@pytest.mark.parametrize(
    ("text", "numbers", "back"),
    [
        ("canny", (100, 200), "canny"),
        ("Canny:50", (50, 200), "canny:50,200"),
        ("canny:10,20.5", (10, 20.5), "canny:10,20.5"),
        ("blur:2", (2,), "blur:2"),
        ("recolor_luminance", (), "luminance"),
        ("lineart_standard (from white bg & black line)", (6, 8), "lineart"),
        ("invert (from white bg & black line)", (), "invert"),
        ("CannyEdgePreprocessor", (100, 200), "canny"),
        ("scribble_xdog", (32,), "scribble"),
    ],
)
def test_a_text_gives_a_preprocessor_and_it_the_text(
    text: str, numbers: tuple[float, ...], back: str
) -> None:
    how = parse_preprocess(text)
    assert (how.numbers, str(how)) == (numbers, back)
    assert parse_preprocess(back) == how == preprocess_from_json(asdict(how))


def test_models_are_paths() -> None:
    how = parse_preprocess("depth:C:/models/depth-anything")
    assert (how.name, how.model) == (Preprocessor.DEPTH, "C:/models/depth-anything")
    for text in ("pose:vitpose", "pose:m/vitpose,C:/m/rt-detr"):
        how = parse_preprocess(text)
        assert str(how) == text and preprocess_from_json(asdict(how)) == how
    assert how.models == ("m/vitpose", "C:/m/rt-detr")
    assert parse_preprocess("openpose: a , b").models == ("a", "b")
    assert preprocesses_from_json(["none", "none"]) == () == preprocesses_from_json("none")
    assert len(preprocesses_from_json(["none", "canny"])) == 2


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("canny:1,2,3", "canny takes LOW, HIGH; got"),
        ("canny:x", "canny is like canny:100,200; got"),
        ("canny:-1", "canny: low is a number, 0 … 1000; got -1"),
        ("canny:nan", "got nan"),
        ("invert:3", "invert takes no numbers"),
        ("shuffle:1.5", "seed is a whole number"),
        ("depth", "the preprocessor depth needs a model for depth estimation: depth:FOLDER"),
        ("openpose_full", "needs weights of its own, which are not read here; pose:PATH"),
        ("densepose", "needs weights of its own, which are not read here; give a map"),
        ({"name": "depth", "model": "x", "detector": "y"}, "depth takes no detector"),
        ("softedge_hed", "scribble or lineart find lines"),
        ("cany", "did you mean canny?"),
        ("", "no preprocessor"),
        (7, "not an object"),
        ({"name": 7}, "has a name"),
        ({"name": "canny", "model": "x"}, "has no model"),
        ({"name": "canny", "numbers": "12"}, "canny takes LOW, HIGH"),
        ({"name": "canny", "numbers": [True]}, "low is a number"),
        ({"name": "canny", "nunbers": []}, "not what such an object holds"),
    ],
)
def test_what_is_no_preprocessor_is_told(value: object, line: str) -> None:
    with pytest.raises(BadRequest) as caught:
        preprocess_from_json(value)
    assert line in str(caught.value) and "\n" not in str(caught.value)


def asked(controls: int, *names: str) -> Request:
    listed = [{"model": f"m{i}", "image": "a.png"} for i in range(controls)]
    return Request.from_json({"prompt": "a cat", "controls": listed, "preprocess": [*names]})


def test_one_preprocessor_is_for_all_pictures_or_each_has_its_own() -> None:
    assert [str(asked(2, "canny:5").preprocess_of(i)) for i in range(2)] == ["canny:5,200"] * 2
    own = asked(2, "none", "gray")
    assert (own.preprocess_of(0), str(own.preprocess_of(1))) == (None, "gray")
    assert asked(1).preprocess_of(0) is None
    with pytest.raises(BadRequest, match="3 times --preprocess for 2 ControlNets; give one"):
        asked(2, "gray", "gray", "canny").preprocess_of(0)


def test_a_record_and_a_prompt_file_keep_it() -> None:
    request = asked(2, "none", "canny:5")
    assert Request.from_json(request.to_json()) == request
    assert "preprocess" not in asked(1, "none").to_json()
    line = "a cat --control m:a.png --preprocess canny:5 --control m:b.png --preprocess none"
    [read] = parse_prompts(line, Request("")).requests
    assert [str(one) for one in read.preprocess] == ["canny:5,200", "none"]
    entries = control_entries(request)
    assert "Module: none, " in entries["ControlNet 0"]
    words = "Module: canny, Model: m1, Weight: 1, Resize Mode: Crop and resize, Threshold A: 5, "
    assert entries["ControlNet 1"].startswith(f"{words}Threshold B: 200, Guidance Start: 0")
