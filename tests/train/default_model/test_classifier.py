"""The classifier: it learns to name what is on the training pictures."""

import json
import random
from pathlib import Path

import pytest
import torch

from tests.support.pictures_data import picture
from txt2img.train.data import Layer, Pictures, Row
from txt2img.train.default_model.captions import BACKGROUNDS
from txt2img.train.default_model.classifier import (
    Caption,
    augment,
    new_classifier,
    plain_rows,
    train_classifier,
    variation,
)

THINGS = [("red", "disc"), ("blue", "bar"), ("yellow", "frame"), ("green", "square")]


@pytest.fixture
def data(tmp_path: Path) -> Pictures:
    """Four things in one style, and one of them on a colour."""
    rows = []
    for colour, shape in THINGS:
        name = f"{colour}.png"
        picture(colour, shape, 64).save(tmp_path / name)
        rows.append({"file_name": name, "text": f"{colour} {shape}, flat"})
    rows.append({"file_name": "red.png", "text": "red disc on blue", "background": "#0000ff"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Pictures(tmp_path)


def test_a_caption_is_a_concept_and_a_style() -> None:
    caption = Caption("ear of corn, 3d emoji")
    assert (caption.concept, caption.style) == ("ear of corn", "3d emoji")
    assert (Caption("a cat").concept, Caption("a cat").style) == ("a cat", "")


def test_it_learns_to_name_the_pictures(data: Pictures) -> None:
    torch.manual_seed(0)
    classifier = new_classifier(data)
    assert classifier.concepts == ("blue bar", "green square", "red disc", "yellow frame")
    assert classifier.styles == ("flat",)
    losses = list(train_classifier(classifier, data, 12, seed=0))
    assert losses[-1] < 0.7 * losses[0]
    pixels = torch.stack([data.paint(row, 64) for row in plain_rows(data)])
    assert classifier.names(pixels) == [" ".join(thing) for thing in THINGS]
    assert classifier.features(pixels).norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_pictures_vary_in_place_size_and_ground_and_stay_whole() -> None:
    rng = random.Random(0)
    made = [variation(Row((Layer("a.png"),), ("a",), (1.0,)), rng) for _ in range(200)]
    for row in made:
        [layer] = row.layers
        assert min(layer.left, layer.top) >= 0
        assert max(layer.left, layer.top) + layer.side <= 1.0
    assert len({row.background for row in made}) == len(BACKGROUNDS) + 1


def test_every_other_picture_is_soft_and_all_have_noise() -> None:
    fine = torch.ones(4, 3, 8, 8)
    fine[..., ::2] = -1.0
    found = augment(fine, torch.Generator().manual_seed(0))
    assert found[::2].abs().mean() < 0.5 < found[1::2].abs().mean()
    assert not torch.equal(found[1], fine[1])
    assert fine.abs().eq(1.0).all(), "the originals are left alone"
