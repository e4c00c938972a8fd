"""Many pictures: in order, each written when it is done, none changed by the batch size."""

import inspect
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from types import SimpleNamespace

import pytest

from txt2img.diffusion.levels import State
from txt2img.errors import BadRequest
from txt2img.images import image_file
from txt2img.images.checks import FailurePolicy
from txt2img.images.output import parse
from txt2img.images.record import Origin
from txt2img.images.resume import items
from txt2img.models.configs import VAEConfig
from txt2img.pipeline import batch, generate
from txt2img.pipeline.batch import (
    BatchSettings,
    Failed,
    Finished,
    Started,
    Step,
    batches,
    filled_requests,
    run,
)
from txt2img.request import Request, Sampler, Schedule
from txt2img.weights.model import Model, origin

SMALL = Request("a", width=64, height=64, steps=2, sampler=Sampler.EULER_A, seed=42)


def drawn(model: Model, requests: list[Request], batch_size: int = 1) -> list[Finished]:
    """What is finished when all are drawn, into the current folder."""
    events = events_of(model, requests, batch_size)
    return [event for event in events if isinstance(event, Finished)]


def events_of(
    model: Model, requests: list[Request], batch_size: int = 1, policy: FailurePolicy | None = None
) -> Generator[batch.Event, None, None]:
    """What happens while all are drawn, into the current folder."""
    target = parse("{index}.png", several=True)
    planned = items(filled_requests(requests, model), target, origin(model))
    return run(planned, model, BatchSettings(target, batch_size, policy or FailurePolicy()))


def test_each_picture_has_its_own_seed(sd1_model: Model) -> None:
    found = list(filled_requests([replace(SMALL, count=3), replace(SMALL, seed=7)], sd1_model))
    assert [request.seed for request in found] == [42, 43, 44, 7]
    assert all(request.count == 1 and request.cfg == 7.5 for request in found)


def test_a_size_that_cannot_be_is_refused_before_any_is_drawn(sd1_model: Model) -> None:
    odd = replace(sd1_model, vae=SimpleNamespace(config=VAEConfig(channels=(32,) * 5)))
    with pytest.raises(BadRequest, match="multiple of 16"):
        list(filled_requests([SMALL, replace(SMALL, width=72)], odd))


def test_steps_that_cannot_be_are_refused_before_any_is_drawn(sd1_model: Model) -> None:
    with pytest.raises(BadRequest, match="1 … 1,000"):
        list(
            filled_requests(
                [SMALL, replace(SMALL, steps=1001, schedule=Schedule.LEADING)], sd1_model
            )
        )


def test_only_what_can_be_drawn_together_is_a_batch() -> None:
    requests = [replace(SMALL, seed=i, steps=2 if i < 5 else 3) for i in range(8)]
    planned = list(items(requests, parse("x.png", several=True), Origin()))
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
    found = image_file.read(finished.path)
    assert found.request == replace(finished.request, model=sd1_model.name)
    assert found.origin == finished.origin
    assert (found.origin.model, found.origin.hash) == (sd1_model.name, sd1_model.hash)
    environment = set(found.origin.environment)
    assert environment == {"txt2img", "torch", "python", "device", "dtype", "threads"}


def test_steps_are_told_and_pictures_written_as_they_are_done(
    sd1_model: Model, folder: Path
) -> None:
    target = parse("{index}.png", several=True)
    planned = items(filled_requests([replace(SMALL, count=2)], sd1_model), target, Origin())
    seen = []
    for event in run(planned, sd1_model, BatchSettings(target)):
        seen.append((event, len(list(folder.glob("*.png")))))
    steps = [Step(1, 1, 1, 2), Step(1, 1, 2, 2), Step(2, 2, 1, 2), Step(2, 2, 2, 2)]
    assert [event for event, _ in seen if isinstance(event, Step)] == steps
    # Before each is written, what sees it may.
    assert [count for _, count in seen] == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of a group are decoded at once, and encoded during the next, as on a card."""
    monkeypatch.setattr(batch, "one_by_one", lambda x: [x])
    monkeypatch.setattr(batch, "on_gpu", lambda model: True)


@pytest.mark.usefixtures("together")
def test_pictures_that_are_encoded_side_by_side_are_the_same_and_in_order(
    sd1_model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [done.path.read_bytes() for done in drawn(sd1_model, [replace(SMALL, count=3)])]
    for path in folder.glob("*.png"):
        path.unlink()
    own, may = batch.encode, Event()

    def late(*picture: object) -> bytes:
        if picture[1].seed == SMALL.seed:  # type: ignore[attr-defined]
            assert may.wait(60)  # the first one is ready last
        else:
            may.set()
        return own(*picture)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "encode", late)
    monkeypatch.setattr(batch.os, "cpu_count", lambda: 3)
    finished = drawn(sd1_model, [replace(SMALL, count=3)], 3)
    assert [done.path.name for done in finished] == ["0001.png", "0002.png", "0003.png"]
    assert [done.path.read_bytes() for done in finished] == alone


@pytest.mark.parametrize("card", [True, False])
def test_a_picture_of_a_batch_that_cannot_be_encoded_is_the_one_that_fails(
    card: bool, sd1_model: Model, folder: Path, request: pytest.FixtureRequest
) -> None:
    own, monkeypatch = batch.encode, request.getfixturevalue("monkeypatch")
    if card:
        request.getfixturevalue("together")

    def broken(*picture: object) -> bytes:
        if picture[1].seed == 43:  # type: ignore[attr-defined]
            raise BadRequest("too long a text")
        return own(*picture)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "encode", broken)
    target = parse("{index}.png", several=True)
    planned = list(
        items(filled_requests([replace(SMALL, count=3)], sd1_model), target, origin(sd1_model))
    )
    with pytest.raises(BadRequest, match="too long"):
        list(run(planned, sd1_model, BatchSettings(target, 3)))
    # The third was drawn with it: whichever is encoded first, it is not lost.
    assert sorted(path.name for path in folder.glob("*.png")) == ["0001.png", "0003.png"]
    for path in folder.glob("*.png"):
        path.unlink()
    events = list(run(planned, sd1_model, BatchSettings(target, 3, FailurePolicy(skip=True))))
    ends = [event for event in events if isinstance(event, Finished | Failed)]
    assert [event.item.index for event in ends] == [1, 2, 3]
    assert isinstance(ends[1], Failed)


@pytest.mark.usefixtures("together")
def test_a_picture_is_encoded_while_the_next_is_drawn(
    sd1_model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is held until the second's first step: drawing does not wait, and none is lost."""
    alone = [done.path.read_bytes() for done in drawn(sd1_model, [replace(SMALL, count=2)])]
    for path in folder.glob("*.png"):
        path.unlink()
    own, may = batch.encode, Event()

    def late(*picture: object) -> bytes:
        assert may.wait(60)
        return own(*picture)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "encode", late)
    seen = []
    for event in events_of(sd1_model, [replace(SMALL, count=2)]):
        seen.append(type(event).__name__)
        if event == Step(2, 2, 1, 2):
            assert not list(folder.glob("*.png"))
            may.set()
    told = ["Started", "Step", "Step", "Decoded", "Started", "Step"]
    assert [seen[:6], sorted(seen[6:])] == [told, ["Decoded", "Finished", "Finished", "Step"]]
    assert seen.index("Finished") < seen.index("Decoded", 4)  # before the next has its name
    assert [path.read_bytes() for path in sorted(folder.glob("*.png"))] == alone


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("end", ["asked", "failed", "empty"])
def test_what_was_drawn_is_written_before_whatever_may_end_a_run(
    sd1_model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A stop that was asked for, a failure of the next picture, a wait for other processes."""
    own, target = batch.sample, parse("{index}.png", several=True)
    encode, may = batch.encode, Event()  # a file is not ready before the next has failed
    monkeypatch.setattr(batch, "encode", lambda *given: may.wait(60) and encode(*given))
    if end != "failed":
        may.set()

    def broken(model: Model, requests: list[Request]) -> object:
        if end == "failed" and requests[0].seed == 43:
            may.set()
            raise BadRequest("no such size")
        return own(model, requests)

    monkeypatch.setattr(batch, "sample", broken)
    planned = items(
        filled_requests([replace(SMALL, count=2)], sd1_model), target, origin(sd1_model)
    )
    groups = [[item] for item in planned]
    if end == "empty":
        groups.insert(1, [])
    seen = []
    monkeypatch.setattr(batch, "batches", lambda items, size: (group for group in groups))
    settings = BatchSettings(target, stop_requested=lambda: end == "asked")
    with suppress(BadRequest):
        for event in run(planned, sd1_model, settings):
            seen.append(type(event).__name__)
    first = seen.index("Finished")
    assert seen.index("Decoded") < first
    assert (first < seen.index("Started", 1)) == (end != "failed")
    assert len(list(folder.glob("*.png"))) == (1 if end == "failed" else 2)


@pytest.mark.usefixtures("together")
def test_a_group_that_fails_leaves_nothing_unwritten_before_it(
    sd1_model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gives out the groups takes the claims on the one before it back after it."""
    own, may = batch.encode, Event()
    drawn_by = batch.sample

    def broken(model: Model, requests: list[Request]) -> object:
        if requests[0].seed == 43:
            Timer(0.2, may.set).start()
            raise BadRequest("no such size")
        return drawn_by(model, requests)

    monkeypatch.setattr(batch, "encode", lambda *given: may.wait(60) and own(*given))
    monkeypatch.setattr(batch, "sample", broken)
    seen = []
    for event in events_of(sd1_model, [replace(SMALL, count=3)], policy=FailurePolicy(skip=True)):
        if isinstance(event, Started | Finished | Failed):
            seen.append(type(event).__name__)
    assert seen == ["Started", "Started", "Failed", "Finished", "Started", "Finished"]


@pytest.mark.usefixtures("together")
def test_what_ends_at_once_leaves_the_latents_of_what_is_not_written(
    sd1_model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may = Event()
    own = batch.encode
    monkeypatch.setattr(batch, "encode", lambda *given: may.wait(60) and own(*given))
    events = events_of(sd1_model, [replace(SMALL, count=2)])
    for event in events:
        if event == Step(2, 2, 1, 2):
            may.set()
            break
    events.close()
    assert not list(folder.glob("*.png"))
    assert len(list(folder.glob(".txt2img-*.latent"))) == 1
    [first, second] = drawn(sd1_model, [replace(SMALL, count=2)])  # the first is only decoded
    assert [first.path.name, second.path.name] == ["0001.png", "0002.png"]
    assert not list(folder.glob(".txt2img-*.latent"))


def test_few_generators_stand_between_a_batch_and_its_sampler(
    sd1_model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, seen = generate.next_state, []

    def watched(states: Iterator[State], request: Request) -> State | None:
        frame = inspect.currentframe()
        while frame and frame.f_code is not run.__code__:
            if frame.f_code.co_flags & inspect.CO_GENERATOR:
                seen.append(frame.f_code.co_name)
            frame = frame.f_back
        return own(states, request)

    monkeypatch.setattr(generate, "next_state", watched)
    assert drawn(sd1_model, [replace(SMALL, steps=1)])
    passes = ["steps_of_job", "draw_pass", "draw_passes", "sample"]
    assert seen == [*passes, "_sample_group", "_draw_group"] * 2  # for a step, and for the end
