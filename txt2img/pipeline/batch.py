"""Many requests, drawn one batch after the other; every picture is written when it is done."""

import platform
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby, islice

import torch
from PIL import Image
from torch import Tensor

from txt2img.errors import BadRequest, OutOfMemory, Rejected, Txt2imgError
from txt2img.images import checks
from txt2img.images.checks import FailurePolicy
from txt2img.images.formats import PNG, Format
from txt2img.images.image_file import check_room
from txt2img.images.output import Output
from txt2img.images.record import Origin
from txt2img.images.resume import Item, ResumeIndex
from txt2img.pipeline.decode import one_by_one
from txt2img.pipeline.generate import batch_key, decode, latent_shape, noise_levels, sample
from txt2img.pipeline.latent_store import LatentStore
from txt2img.pipeline.writer import FAILURES, Decoded, Failed, Finished, ImageWriter
from txt2img.request.request import Request
from txt2img.system.device.device import describe
from txt2img.system.version import __version__
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.model import Model, device_of


@dataclass(frozen=True)
class Started:
    """These pictures are being drawn from now on."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class Step:
    """One step of a batch is done."""

    first: int  # the pictures first … last of all are being drawn, counted from 1
    last: int
    step: int
    steps: int
    items: tuple[Item, ...] = field(default=(), compare=False)
    x0: Tensor | None = field(default=None, compare=False)  # (B, C, h, w): what they may become


@dataclass(frozen=True)
class Notice:
    """What the user should know of how a picture is drawn."""

    line: str


NOTE_SINGLE = "Out of memory for a batch: drawn one by one instead"
Event = Started | Step | Finished | Failed | Notice


def filled_requests(
    requests: Iterable[Request],
    model: Model,
    errors: dict[Hashable, Txt2imgError] | None = None,
    form: Format = PNG,
) -> Iterator[Request]:
    """One filled request a picture, in order; BadRequest if the model cannot draw one of them.

    With `errors`, those that it cannot draw are passed over and kept there by their number.
    """
    checked: set[Request] = set()
    made_by = Origin() if form == PNG else origin(model)
    for number, request in enumerate(requests, start=1):
        try:
            filled = resolve_adapters(model, request).seeded().filled(model.family.defaults)
            if batch_key(filled) not in checked:
                latent_shape(model, filled)
                noise_levels(model, filled)
                checked.add(batch_key(filled))
            check_room(filled, made_by, form)
        except BadRequest as error:
            if errors is None:
                raise
            errors[number] = error
            continue
        yield from (filled.nth(i) for i in range(filled.count))


def run(
    model: Model,
    groups: Iterable[list[Item]],
    output: Output,
    policy: FailurePolicy | None = None,
    shelf: LatentStore | None = None,
    last: Callable[[], bool] = lambda: False,
) -> Generator[Event | Decoded, None, None]:
    """Draw and write pictures, those of a group together.

    A card draws the next group while files of this one are encoded, but not before an empty group,
    or when `last` says that whoever listens will end the run after what was begun.
    Without policy.skip, raises what the first picture that fails does.
    """
    shelf, policy = shelf or LatentStore(output, origin(model)), policy or FailurePolicy()
    beside = on_card(model) and shelf.on  # without a shelf, an end would lose what was drawn
    with closing(ImageWriter(output, shelf, policy.skip, beside)) as finisher:
        for group in groups:
            if not group or last():
                yield from finisher.all()
            if group:
                yield Started(tuple(group))
                yield from _written(_drawn(model, group, shelf, policy), finisher)
        yield from finisher.all()


def on_card(model: Model) -> bool:
    """Whether the processor is free while the model draws."""
    return device_of(model).type != "cpu"


def _written(
    events: Iterable[Event | Decoded], finisher: ImageWriter
) -> Generator[Event | Decoded, None, None]:
    """The events of one group, and of the pictures before it and in it that are written by then."""
    older = len(finisher.waiting)
    try:
        for event in events:
            if older and (finisher.error or isinstance(event, Decoded)):
                yield from finisher.all()  # a picture's files must know the names before its own
                older = 0
            yield event
            if isinstance(event, Decoded):
                finisher.add(event)
            yield from finisher.ready()
        # nothing may have come of this group, and the claims on those before it end with it
        if older or finisher.error:
            yield from finisher.all()
    except Txt2imgError:
        yield from finisher.all()
        raise


def claimed_batches(
    items: Iterable[Item], ledger: ResumeIndex, size: int
) -> Generator[list[Item], None, None]:
    """Batches of what no other process draws; when these are done, what others left undone.

    Before it waits for others it gives an empty batch: all must be written by the next.
    """
    late: list[Item] = []
    held: deque[list[Item]] = deque()
    try:
        for group in batches(ledger.claimable(items, late), size):
            held.append(group)
            yield group
            while len(held) > 1:  # the latest may not be written yet
                ledger.release(held.popleft())
        if late:
            yield []
    finally:
        for group in held:
            ledger.release(group)
    for item in late:  # one by one: who waits must hold nothing that others wait for
        if ledger.wait(item):
            try:
                yield [item]
                yield []
            finally:
                ledger.release([item])


def batches(items: Iterable[Item], size: int) -> Generator[list[Item], None, None]:
    """The pictures in order, `size` at a time as long as they can be drawn together."""
    for _, group in groupby(items, key=lambda item: batch_key(item.request)):
        while batch := list(islice(group, size)):
            yield batch


def origin(model: Model, used: dict[str, str] | None = None) -> Origin:
    """The model and the environment, with the fallbacks `used`, for the pictures' records."""
    environment = {
        "txt2img": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": describe(device_of(model)),
        "dtype": precision(model),
    }
    return Origin(model.name, model.hash, environment | (used or {}))


def precision(model: Model) -> str:
    """The dtype of the networks, or of each where they differ, for records."""
    parts = {"unet": model.network, "vae": model.vae, "text": model.text.encoders[0]}
    names = {p: str(next(n.parameters()).dtype).removeprefix("torch.") for p, n in parts.items()}
    if model.memory.quantized:
        names["unet"] += f"/{model.memory.quantized}"
    if len(set(names.values())) == 1:
        return names["unet"]
    return ",".join(f"{part}={name}" for part, name in names.items())


def _drawn(
    model: Model, group: list[Item], shelf: LatentStore, policy: FailurePolicy, tries: int = 0
) -> Iterator[Event | Decoded]:
    """Draw a group; gives what passes the gate. What fails is drawn alone, or again."""
    left = deque(group)
    start = time.perf_counter()
    try:
        for drawn in _together(model, group, shelf):
            if isinstance(drawn, Step | Notice):
                yield drawn
                continue
            made_by = shelf.origin
            its = replace(made_by, environment={**made_by.environment, **model.memory.used})
            for picture in drawn:
                _check(picture, left[0], policy, shelf)
                seconds = (time.perf_counter() - start) / len(group)
                yield Decoded(left.popleft(), picture, its, seconds)
    except FAILURES as error:
        yield from map(Notice, model.memory.pop_warnings())
        if len(group) > 1:
            if isinstance(error, OutOfMemory):
                yield Notice(NOTE_SINGLE)
            for item in left:
                yield from _drawn(model, [item], shelf, policy)
        elif isinstance(error, Rejected) and tries < policy.retries:
            again = _retry(group[0], tries + 1)
            yield from _drawn(model, [again], shelf, policy, tries + 1)
        elif policy.skip:
            yield Failed(group[0], error)
        else:
            raise


def _retry(item: Item, attempt: int) -> Item:
    """An item with the seed of its `attempt`-th retry."""
    first = item.request.seed if item.first_seed is None else item.first_seed
    seed = checks.retry_seed(first or 0, attempt)
    return replace(item, request=replace(item.request, seed=seed), first_seed=first)


def _check(picture: Image.Image, item: Item, policy: FailurePolicy, shelf: LatentStore) -> None:
    """Raise Rejected for a picture that must not be; its latent is not wanted either."""
    try:
        checks.check_image(picture, policy.reject)
    except Rejected:
        shelf.delete(item)
        raise


def _together(
    model: Model, group: list[Item], shelf: LatentStore
) -> Iterator[Step | Notice | list[Image.Image]]:
    """The steps of a batch, then its pictures: on a CPU one by one, so each is saved when done.

    What was drawn before and kept is only decoded.
    """
    device = device_of(model)
    before = [x for item in group if (x := shelf.load(item)) is not None]
    if len(before) == len(group):
        x = torch.stack(before).to(device)
    else:
        x = yield from _sampled(model, group, shelf)
    for part in one_by_one(x) if x.device.type == "cpu" else [x]:
        pictures = decode(model, part)
        yield from map(Notice, model.memory.pop_warnings())
        yield pictures


def _sampled(
    model: Model, group: list[Item], shelf: LatentStore
) -> Generator[Step | Notice, None, Tensor]:
    """The steps of a batch; gives its latents (B, C, h, w), which are kept.

    Whoever stops in between finds what the picture was thought to become.
    """
    requests = [item.request for item in group]
    steps = len(noise_levels(model, requests[0])) - 1
    step, x0 = 0, None
    try:
        for state in sample(model, requests):
            step, x, x0 = state.step, state.x, state.x0
            yield from map(Notice, model.memory.pop_warnings())
            yield Step(group[0].index, group[-1].index, step, steps, tuple(group), x0)
    except BaseException as stop:
        if x0 is not None and not isinstance(stop, Exception):
            for item, latent in zip(group, x if step == steps else x0, strict=True):
                shelf.save(item, latent, step, steps)
        raise
    for item, latent in zip(group, x, strict=True):
        shelf.save(item, latent, step, steps)
    return x
