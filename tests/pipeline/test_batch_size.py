"""As many pictures are drawn at once as there is room for, where nobody says how many."""

from dataclasses import replace

import pytest

from tests.pipeline.test_generate import SMALL
from txt2img.pipeline import batch_size
from txt2img.pipeline.batch_size import (
    MAX_BATCH,
    SHARE,
    auto_batch_size,
    bytes_per_image,
    images_that_fit,
)
from txt2img.request import Schedule
from txt2img.weights.model import Model


def test_a_picture_needs_more_where_it_is_larger_or_guided(sd1_model: Model) -> None:
    wide = replace(SMALL, width=128)
    assert bytes_per_image(sd1_model, wide) == 2 * bytes_per_image(sd1_model, SMALL)
    assert bytes_per_image(sd1_model, replace(SMALL, cfg=1.0)) <= bytes_per_image(sd1_model, SMALL)


def test_a_recorded_network_keeps_its_memory_while_pictures_are_decoded(
    sd1_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bytes_per_image(sd1_model, SMALL)
    monkeypatch.setattr(sd1_model, "graphed", object())
    assert plain < bytes_per_image(sd1_model, SMALL) <= 2 * plain


def test_free_memory_is_filled_up_to_a_bound(sd1_model: Model) -> None:
    each = bytes_per_image(sd1_model, SMALL)
    assert [
        images_that_fit(sd1_model, SMALL, int(n * each / SHARE) + 9) for n in (0, 1, 3, 99)
    ] == [
        1,
        1,
        3,
        MAX_BATCH,
    ]


def test_a_cpu_draws_one_by_one(sd1_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert auto_batch_size(sd1_model, [SMALL]) == 1
    monkeypatch.setattr(batch_size, "free_memory", lambda device: 2**40)
    assert auto_batch_size(sd1_model, [SMALL]) == MAX_BATCH
    impossible = replace(SMALL, steps=1001, schedule=Schedule.LEADING)
    assert auto_batch_size(sd1_model, [impossible]) == 1
