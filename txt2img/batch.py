"""Many requests, drawn one batch after the other; every picture is written when it is done."""

import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from PIL import Image

from txt2img import __version__
from txt2img.device import describe
from txt2img.output import Output
from txt2img.pipeline import Job, decode, latent_shape, noise_levels, one_by_one, prepare, shape
from txt2img.png import Origin, encode
from txt2img.request import Request
from txt2img.weights.load import Model
from txt2img.weights.wear import ready


@dataclass(frozen=True)
class Step:
    """One step of a batch is done."""

    first: int  # the pictures first … last of all are being drawn, counted from 1
    last: int
    step: int
    steps: int


@dataclass(frozen=True)
class Finished:
    """A picture is written."""

    path: Path
    request: Request  # filled, this picture's own
    origin: Origin
    seconds: float  # its share of the time that its batch took


def each(requests: Sequence[Request], model: Model) -> list[Request]:
    """One filled request a picture, in order; BadRequest if the model cannot draw one of them."""
    pictures = []
    for request in requests:
        filled = ready(model, request).seeded().filled(model.family.defaults)
        latent_shape(model, filled)
        noise_levels(model, filled)
        pictures += [filled.nth(i) for i in range(filled.count)]
    return pictures


def run(
    model: Model, pictures: Sequence[Request], output: Output, batch_size: int = 1
) -> Iterator[Step | Finished]:
    """Draw and write the pictures that `each` gives: a Step each step, a Finished each file."""
    made_by = origin(model)
    done = 0
    for requests in batches(pictures, batch_size):
        start = time.perf_counter()
        job = prepare(model, requests)
        for state in job.states():
            x = state.x
            yield Step(done + 1, done + len(requests), state.step, job.steps)
        for request, image in zip(requests, _images(model, job, x), strict=True):
            done += 1
            seconds = (time.perf_counter() - start) / len(requests)
            path = output.write(encode(image, request, made_by), request, done)
            yield Finished(path, request, made_by, seconds)


def batches(pictures: Sequence[Request], size: int) -> Iterator[list[Request]]:
    """The pictures in order, `size` at a time as long as they can be drawn together."""
    for _, group in groupby(pictures, key=shape):
        while batch := list(islice(group, size)):
            yield batch


def origin(model: Model) -> Origin:
    """The model and the environment, for the pictures' records."""
    weights = next(model.network.parameters())
    environment = {
        "txt2img": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": describe(weights.device),
        "dtype": str(weights.dtype).removeprefix("torch."),
    }
    return Origin(model.name, model.hash, environment)


def _images(model: Model, job: Job, x: torch.Tensor) -> Iterator[Image.Image]:
    """The pictures of a batch: on a CPU one after the other, so that each is saved when done."""
    for part in one_by_one(x) if job.device.type == "cpu" else [x]:
        yield from decode(model, part)
