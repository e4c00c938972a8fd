"""Preprocessors in a request: their text, their numbers, other programs' names for them."""

from dataclasses import asdict

import pytest

from txt2img.errors import BadRequest
from txt2img.request.preprocess import (
    Preprocessor,
    parse_preprocess,
    preprocess_from_json,
)


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
    assert preprocess_from_json("none") is None and preprocess_from_json(None) is None


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
        ("openpose_full", "needs weights of its own, which are not read here; give a map"),
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
