"""Many requests → images: drawn in batches, each written as soon as it is done, as events.

Encoding takes a core for 20 … 80 ms at 512×512 pixels, drawing takes a GPU some 400 ms. Only
encoding runs in other threads: the one that draws writes the files and yields their events.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from txt2img.errors import BadRequest, OutOfMemory, Rejected, Txt2imgError
from txt2img.images import checks
from txt2img.images.checks import FailurePolicy
from txt2img.images.formats import PNG, Format
from txt2img.images.image_file import check_record_fits, encode
from txt2img.images.output import Output
from txt2img.images.record import Origin, pixels_sha256
from txt2img.images.resume import Item, ResumeIndex
from txt2img.pipeline.decode import one_by_one
from txt2img.pipeline.generate import batch_key, check_drawable, decode, sample
from txt2img.pipeline.latent_store import LatentStore
from txt2img.request import Request
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.model import Model, device_of, origin

# Failures of one image; others, such as a full disk, end a run.
FAILURES = (Rejected, OutOfMemory, BadRequest)


@dataclass(frozen=True)
class Decoded:
    """An image is decoded, and not written yet."""

    item: Item
    image: Image.Image
    origin: Origin
    seconds: float  # its share of the time that its batch took


@dataclass(frozen=True)
class Finished:
    """An image is written."""

    path: Path
    item: Item
    origin: Origin
    seconds: float
    pixels_sha256: str

    @property
    def request(self) -> Request:
        """This image's own request, filled."""
        return self.item.request


@dataclass(frozen=True)
class Failed:
    """An image could not be made, and the run goes on without it."""

    item: Item
    error: Txt2imgError


class ImageWriter:
    """Encodes images as they come, and writes them in that order.

    Their latents are saved until then: whatever ends the run, no step was for nothing.
    """

    def __init__(
        self, output: Output, latents: LatentStore, skip: bool, asynchronous: bool
    ) -> None:
        self.output, self.latents, self.skip = output, latents, skip
        self.asynchronous = asynchronous  # whether drawing goes on while files are encoded
        self.waiting: deque[tuple[Decoded, Future[bytes]]] = deque()
        self.error: Txt2imgError | None = None  # of the first image that failed, without `skip`
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1)  # its threads start when needed

    def add(self, decoded: Decoded) -> None:
        """Begin to encode an image."""
        item, form = decoded.item, self.output.format
        picture = decoded.image, item.request, decoded.origin, item.first_seed, form
        self.waiting.append((decoded, self.pool.submit(encode, *picture)))

    def write_ready(self) -> Iterator[Finished | Failed]:
        """Write the encoded images up to the first that is not; `write_all` raises failures."""
        while self.waiting and (not self.asynchronous or self.waiting[0][1].done()):
            yield from self._write_first()

    def write_all(self) -> Iterator[Finished | Failed]:
        """Wait for all images and write them; then, without `skip`, raise the first failure."""
        while self.waiting:
            yield from self._write_first()
        if self.error:
            raise self.error

    def _write_first(self) -> Iterator[Finished | Failed]:
        """Write the first image, or note why it failed. BadOutput."""
        decoded, file = self.waiting.popleft()
        item = decoded.item
        try:
            data = file.result()
        except FAILURES as error:
            if self.skip:
                yield Failed(item, error)
            else:
                self.error = self.error or error
            return
        path = self.output.write_as(data, item.name, item.number)
        self.latents.delete(item, path)
        sha256 = pixels_sha256(decoded.image)
        yield Finished(path, item, decoded.origin, decoded.seconds, sha256)

    def close(self) -> None:
        """Give up what is not written."""
        self.waiting.clear()
        self.pool.shutdown(cancel_futures=True)


NOTE_SINGLE = "Out of memory for a batch: drawn one by one instead"


@dataclass(frozen=True)
class BatchSettings:
    """Settings of a batch: its output, sizes and policies."""

    output: Output
    batch_size: int = 1
    policy: FailurePolicy = field(
        default_factory=FailurePolicy
    )  # without `skip` the first failure ends the run
    resume: ResumeIndex | None = None  # draw only what is not there, nor drawn by others
    latents: LatentStore | None = None
    stop_requested: Callable[[], bool] = lambda: False  # whether the run ends after this group


@dataclass(frozen=True)
class Started:
    """These images are being drawn from now on."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class Step:
    """One step of a batch is done."""

    first: int  # the images first … last of all are being drawn, counted from 1
    last: int
    step: int
    steps: int
    items: tuple[Item, ...] = field(default=(), compare=False)
    x0: Tensor | None = field(default=None, compare=False)  # (B, C, h, w), for previews


@dataclass(frozen=True)
class Upscaling:
    """A part of a decoded image is upscaled: so many tiles of all."""

    item: Item
    done: int
    total: int


@dataclass(frozen=True)
class Notice:
    """A line for the user about how an image is drawn."""

    line: str


Event = Started | Step | Upscaling | Notice | Decoded | Finished | Failed


def run(
    items: Iterable[Item], model: Model, settings: BatchSettings
) -> Generator[Event, None, None]:
    """Draw and write the images of a batch; yield what happens.

    On a GPU, files are encoded while the next group is drawn.
    """
    # 1. Group what can be drawn together, and is not done or claimed by other processes.
    size, index = settings.batch_size, settings.resume
    groups = batches(items, size) if index is None else claimed_batches(items, index, size)
    latents = settings.latents or LatentStore(settings.output, origin(model))
    asynchronous = on_gpu(model) and latents.on  # without saved latents, a stop would lose images
    writer = ImageWriter(settings.output, latents, settings.policy.skip, asynchronous)
    with closing(groups), closing(writer):
        for group in groups:
            # 2. Before a wait for others (an empty group) or a stop, write all that is drawn.
            if not group or settings.stop_requested():
                yield from writer.write_all()
            if not group:
                continue
            # 3. Draw a group, and hand each image to the writer.
            yield Started(tuple(group))
            older = bool(writer.waiting)
            try:
                for event in _draw_group(group, model, settings.policy, latents):
                    if older and (writer.error or isinstance(event, Decoded)):
                        yield from writer.write_all()  # their names come before this group's
                        older = False
                    yield event
                    if isinstance(event, Decoded):
                        writer.add(event)
                    yield from writer.write_ready()
            except Txt2imgError:
                yield from writer.write_all()
                raise
            # 4. The claims on older groups end now: they must be written, even if this one failed.
            if older or writer.error:
                yield from writer.write_all()
        yield from writer.write_all()


def filled_requests(
    requests: Iterable[Request],
    model: Model,
    errors: dict[Hashable, Txt2imgError] | None = None,
    form: Format = PNG,
) -> Iterator[Request]:
    """Yield one filled request an image, in order; BadRequest if the model cannot draw one.

    With `errors`, those are skipped, and their errors collected by their numbers.
    """
    checked: set[Request] = set()
    made_by = Origin() if form == PNG else origin(model)
    for number, request in enumerate(requests, start=1):
        try:
            filled = resolve_adapters(model, request).seeded().filled(model.family.defaults)
            if batch_key(filled) not in checked:
                check_drawable(model, filled)
                checked.add(batch_key(filled))
            check_record_fits(filled, made_by, form)
        except BadRequest as error:
            if errors is None:
                raise
            errors[number] = error
            continue
        yield from (filled.nth(i) for i in range(filled.count))


def on_gpu(model: Model) -> bool:
    """Whether the processor is free while the model draws."""
    return device_of(model).type != "cpu"


def batches(items: Iterable[Item], size: int) -> Generator[list[Item], None, None]:
    """Group items in order, at most `size` at a time, all with one batch key."""
    for _, group in groupby(items, key=lambda item: batch_key(item.request)):
        while batch := list(islice(group, size)):
            yield batch


def claimed_batches(
    items: Iterable[Item], index: ResumeIndex, size: int
) -> Generator[list[Item], None, None]:
    """Group what no other process draws; then, one by one, what others left undone.

    An empty group comes before each wait for others: all images must be written by the next.
    """
    late: list[Item] = []
    held: deque[list[Item]] = deque()
    try:
        for group in batches(index.claimable(items, late), size):
            held.append(group)
            yield group
            while len(held) > 1:  # the latest may not be written yet
                index.release(held.popleft())
        if late:
            yield []
    finally:
        for group in held:
            index.release(group)
    for item in late:  # one by one: a process that waits must hold no claim that others wait for
        if index.wait(item):
            try:
                yield [item]
                yield []
            finally:
                index.release([item])


def _draw_group(
    group: list[Item], model: Model, policy: FailurePolicy, latents: LatentStore
) -> Iterator[Event]:
    """Draw a group; what fails is drawn alone, or retried with another seed."""
    todo = deque([(group, 0)])
    while todo:
        items, attempt = todo.popleft()
        left, start = deque(items), time.perf_counter()
        try:
            # 1. Latents.
            x = yield from _sample_group(items, model, latents)
            # 2. Images: on a CPU decoded one by one, so that each is saved when it is done.
            for part in one_by_one(x) if x.device.type == "cpu" else [x]:
                images = decode(model, part, items[0].request)
                yield from map(Notice, model.memory.pop_warnings())
                environment = {**latents.origin.environment, **model.memory.used}
                made_by = replace(latents.origin, environment=environment)
                for image in images:
                    _check(image, left[0], policy, latents)
                    image = yield from _upscale(image, left[0], model)
                    seconds = (time.perf_counter() - start) / len(items)
                    yield Decoded(left.popleft(), image, made_by, seconds)
        # 3. Failures.
        except FAILURES as error:
            yield from map(Notice, model.memory.pop_warnings())
            if len(items) > 1:
                if isinstance(error, OutOfMemory):
                    yield Notice(NOTE_SINGLE)
                todo.extend(([item], 0) for item in left)
            elif isinstance(error, Rejected) and attempt < policy.retries:
                todo.appendleft(([_retry(items[0], attempt + 1)], attempt + 1))
            elif policy.skip:
                yield Failed(items[0], error)
            else:
                raise


def _sample_group(
    items: list[Item], model: Model, latents: LatentStore
) -> Generator[Event, None, Tensor]:
    """Sample a group's latents (B, C, h, w) and save them, or load those of an earlier run.

    What stops the run in between leaves the last x0 in the store.
    """
    loaded = [x for item in items if (x := latents.load(item)) is not None]
    if len(loaded) == len(items):
        return torch.stack(loaded).to(device_of(model))
    state = None
    try:
        for state in sample(model, [item.request for item in items]):
            yield from map(Notice, model.memory.pop_warnings())
            numbers = items[0].index, items[-1].index, state.step, state.steps
            if state.step:
                yield Step(*numbers, tuple(items), state.x0)
    except BaseException as stop:
        if state is not None and not isinstance(stop, Exception):
            latents.save(items, state)
        raise
    assert state is not None
    latents.save(items, state)
    return state.x


def _upscale(image: Image.Image, item: Item, model: Model) -> Generator[Event, None, Image.Image]:
    """The image as large as its request asks."""
    if item.request.upscale is None:
        return image
    from txt2img.pipeline.upscale import upscale_for

    for step in upscale_for(model, item.request, image):
        yield Upscaling(item, step.done, step.total)
        image = step.image or image
    return image


def _retry(item: Item, attempt: int) -> Item:
    """An item with the seed of its `attempt`-th retry."""
    first = item.request.seed if item.first_seed is None else item.first_seed
    seed = checks.retry_seed(first or 0, attempt)
    return replace(item, request=replace(item.request, seed=seed), first_seed=first)


def _check(image: Image.Image, item: Item, policy: FailurePolicy, latents: LatentStore) -> None:
    """Raise Rejected for an image that the policy rejects, and delete its latent."""
    try:
        checks.check_image(image, policy.reject)
    except Rejected:
        latents.delete(item)
        raise
