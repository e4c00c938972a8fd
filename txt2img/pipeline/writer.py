"""Pictures that are drawn, on their way to the disk: encoded beside whatever is drawn next.

Encoding takes a core for 20 … 80 ms at 512×512 pixels, a card some 400 ms for drawing. Only the
encoding is another thread's: files are written, and told of, by the one that draws, in order.
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
from txt2img.request.request import Request

# What one picture's failure is; all else, such as a full disk, ends a run.
FAILURES = (Rejected, OutOfMemory, BadRequest)


@dataclass(frozen=True)
class Decoded:
    """A picture that will be, and is not written yet."""

    item: Item
    picture: Image.Image
    origin: Origin
    seconds: float  # its share of the time that its batch took


@dataclass(frozen=True)
class Finished:
    """A picture is written."""

    path: Path
    item: Item
    origin: Origin
    seconds: float
    pixels_sha256: str

    @property
    def request(self) -> Request:
        """This picture's own request, filled."""
        return self.item.request


@dataclass(frozen=True)
class Failed:
    """A picture could not be made, and the run goes on without it."""

    item: Item
    error: Txt2imgError


class ImageWriter:
    """Encodes pictures as they come, and writes them in that order.

    Their latents stay on the shelf until then: whatever ends the run, no step was for nothing.
    """

    def __init__(self, output: Output, shelf: LatentStore, skip: bool, beside: bool) -> None:
        self.output, self.shelf, self.skip = output, shelf, skip
        self.beside = beside  # whether drawing goes on while files are encoded
        self.waiting: deque[tuple[Decoded, Future[bytes]]] = deque()
        self.error: Txt2imgError | None = None  # the first picture's that failed, without `skip`
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1)  # its threads start when needed

    def add(self, drawn: Decoded) -> None:
        """Begin to encode a picture."""
        item, form = drawn.item, self.output.format
        given = drawn.picture, item.request, drawn.origin, item.first_seed, form
        self.waiting.append((drawn, self.pool.submit(encode, *given)))

    def ready(self) -> Iterator[Finished | Failed]:
        """Write those that are encoded, up to the first that is not; failures wait for `all`."""
        while self.waiting and (not self.beside or self.waiting[0][1].done()):
            yield from self._first()

    def all(self) -> Iterator[Finished | Failed]:
        """Write all, however long it takes to encode them; then raise what one of them failed by.

        Without `skip` that ends the run, but nothing that was drawn is lost for it.
        """
        while self.waiting:
            yield from self._first()
        if self.error:
            raise self.error

    def _first(self) -> Iterator[Finished | Failed]:
        """Write the first, or keep why it failed. BadOutput."""
        drawn, file = self.waiting.popleft()
        try:
            data = file.result()
        except FAILURES as error:
            if self.skip:
                yield Failed(drawn.item, error)
            else:
                self.error = self.error or error
            return
        item = drawn.item
        path = self.output.write_as(data, item.name, item.number)
        self.shelf.delete(item, path)
        sha256 = pixels_sha256(drawn.picture)
        yield Finished(path, item, drawn.origin, drawn.seconds, sha256)

    def close(self) -> None:
        """Give up what is not written."""
        self.waiting.clear()
        self.pool.shutdown(cancel_futures=True)
