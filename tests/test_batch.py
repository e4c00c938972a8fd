"""Many pictures: in order, each written when it is done, none changed by the batch size."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from txt2img import png
from txt2img.batch import Finished, Step, batches, each, run
from txt2img.errors import BadRequest
from txt2img.ledger import items
from txt2img.models.shapes import VAEConfig
from txt2img.output import parse
from txt2img.request import Request, Sampler, Schedule
from txt2img.weights.load import Model

SMALL = Request("a", width=64, height=64, steps=2, sampler=Sampler.EULER_A, seed=42)


def drawn(model: Model, requests: list[Request], batch_size: int = 1) -> list[Finished]:
    """What is finished when all are drawn, into the current folder."""
    target = parse("{index}.png", several=True)
    planned = items(each(requests, model), target, model.hash)
    events = run(model, batches(planned, batch_size), target)
    return [event for event in events if isinstance(event, Finished)]


def test_each_picture_has_its_own_seed(sd1_model: Model) -> None:
    found = list(each([replace(SMALL, count=3), replace(SMALL, seed=7)], sd1_model))
    assert [request.seed for request in found] == [42, 43, 44, 7]
    assert all(request.count == 1 and request.cfg == 7.5 for request in found)


def test_a_size_that_cannot_be_is_refused_before_any_is_drawn(sd1_model: Model) -> None:
    odd = replace(sd1_model, vae=SimpleNamespace(config=VAEConfig(channels=(32,) * 5)))
    with pytest.raises(BadRequest, match="multiple of 16"):
        list(each([SMALL, replace(SMALL, width=72)], odd))


def test_steps_that_cannot_be_are_refused_before_any_is_drawn(sd1_model: Model) -> None:
    with pytest.raises(BadRequest, match="1 to 1000"):
        list(each([SMALL, replace(SMALL, steps=1001, schedule=Schedule.LEADING)], sd1_model))


def test_only_what_can_be_drawn_together_is_a_batch() -> None:
    requests = [replace(SMALL, seed=i, steps=2 if i < 5 else 3) for i in range(8)]
    planned = list(items(requests, parse("x.png", several=True), ""))
    assert [len(batch) for batch in batches(planned, 3)] == [3, 2, 3]
    assert [item for batch in batches(planned, 3) for item in batch] == planned


def test_bytes_do_not_depend_on_the_batch_size(sd1_model: Model, folder: Path) -> None:
    requests = [replace(SMALL, count=3), replace(SMALL, prompt="b", seed=43)]
    one, three = drawn(sd1_model, requests), drawn(sd1_model, requests, 3)
    assert len(one) == 4
    for a, b in zip(one, three, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()
    [alone] = drawn(sd1_model, [replace(SMALL, seed=43)])
    assert alone.path.read_bytes() == one[1].path.read_bytes()


def test_a_picture_says_how_it_was_made(sd1_model: Model, folder: Path) -> None:
    [finished] = drawn(sd1_model, [SMALL])
    found = png.read(finished.path)
    assert found.request == replace(finished.request, model=sd1_model.name)
    assert found.origin == finished.origin
    assert (found.origin.model, found.origin.hash) == (sd1_model.name, sd1_model.hash)
    assert {"txt2img", "torch", "python", "device", "dtype"} == set(found.origin.environment)


def test_steps_are_told_and_pictures_written_as_they_are_done(
    sd1_model: Model, folder: Path
) -> None:
    target = parse("{index}.png", several=True)
    planned = items(each([replace(SMALL, count=2)], sd1_model), target, "")
    seen = []
    for event in run(sd1_model, batches(planned, 1), target):
        seen.append((event, len(list(folder.glob("*.png")))))
    steps = [Step(1, 1, 1, 2), Step(1, 1, 2, 2), Step(2, 2, 1, 2), Step(2, 2, 2, 2)]
    assert [event for event, _ in seen if isinstance(event, Step)] == steps
    # Before each is written, what sees it may.
    assert [count for _, count in seen] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
