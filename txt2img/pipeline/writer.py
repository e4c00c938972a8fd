"""Writes images in order, and encodes them in threads while the next ones are drawn.

Encoding takes a core for 20 … 80 ms at 512×512 pixels, drawing takes a GPU some 400 ms. Only
encoding runs in other threads: the one that draws writes the files and yields their events.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from txt2img.errors import BadRequest, OutOfMemory, Rejected, Txt2imgError
from txt2img.images.image_file import encode
from txt2img.images.output import Output
from txt2img.images.record import Origin, pixels_sha256
from txt2img.images.resume import Item
from txt2img.pipeline.latent_store import LatentStore
from txt2img.request import Request

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
