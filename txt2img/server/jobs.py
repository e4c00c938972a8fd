"""Jobs of clients: one is drawn at a time, the others wait in order, and a client may leave."""

import asyncio
import gc
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from txt2img.images.formats import PNG, Format
from txt2img.images.record import Origin
from txt2img.request import Request
from txt2img.server.catalog import Catalog
from txt2img.server.metrics import Metrics
from txt2img.system import resources

if TYPE_CHECKING:
    from PIL import Image

SECONDS_GUESSED = 10.0  # of a job, before any was drawn
RETRY_MAX = 600  # seconds that a client is told to wait
TIDY_SECONDS = 3.0  # without a job, after which memory is given back
SMOOTHING = 0.3  # the share of the newest job in the mean time of one


@dataclass(frozen=True)
class Picture:
    """A drawn picture's file, and what it says of itself."""

    data: bytes
    request: Request  # filled, for one picture
    origin: Origin


@dataclass(eq=False)
class Job:
    """A client's pictures, from the queue to the answer."""

    request: Request  # seeded; its `count` pictures
    model: str  # as the catalog names it
    contents: Mapping[str, bytes] = field(default_factory=dict)  # pictures sent with it, by name
    format: Format = PNG
    api: str = ""
    owner: str = ""  # whose key came with it
    enlarges: bool = False  # it draws nothing: its picture is upscaled
    partials: int = 0  # previews of each picture that a stream asks for
    pictures: list[Picture] = field(default_factory=list)
    unfinished: "Image.Image | None" = None  # of the picture that was interrupted
    step: int = 0
    steps: int = 0
    began: float | None = None  # when it left the queue
    stop: Event = field(default_factory=Event)  # set: it ends after the current step
    preview_wanted: bool = False
    preview: "Image.Image | None" = None
    previews: list[tuple[int, bytes]] = field(default_factory=list)  # number of picture, PNG
    on_change: Callable[[], None] = lambda: None  # called by the thread that draws

    @property
    def progress(self) -> float:
        """The share of its steps that is done."""
        whole = len(self.pictures) + (self.step / self.steps if self.steps else 0.0)
        return min(whole / self.request.count, 1.0)

    def wants_partial(self) -> bool:
        """Whether a stream asked for a preview of this step: they are spread evenly."""
        due = [self.steps * i // (self.partials + 1) for i in range(1, self.partials + 1)]
        return self.step in due and 0 < self.step < self.steps


Draw = Callable[[Job, Catalog], None]


class Queue:
    """The jobs of all clients: a bounded queue before the one thread that draws."""

    def __init__(self, draw: Draw, catalog: Catalog, most: int, metrics: Metrics) -> None:
        self.draw, self.catalog, self.most, self.metrics = draw, catalog, most, metrics
        self.jobs: list[Job] = []  # the one being drawn, and those that wait
        self.turn = asyncio.Lock()  # fair: who came first is served first
        self.thread = ThreadPoolExecutor(1, "draw")  # one, whose OpenMP threads stay warm
        self.closing = False
        self.tidying: asyncio.TimerHandle | None = None
        self.seconds = SECONDS_GUESSED

    @property
    def running(self) -> Job | None:
        """The job that is being drawn."""
        return next((job for job in self.jobs if job.began is not None), None)

    def retry_after(self) -> int:
        """Seconds after which there may be room."""
        return int(min(max(self.seconds, 1), RETRY_MAX))

    async def run(self, job: Job) -> None:
        """Wait for a job's turn and draw it; a cancelled one leaves the queue, or stops drawing.

        HTTPException if there is no room, or the server ends. Txt2imgError.
        """
        if len(self.jobs) > self.most:
            self.metrics.count("jobs_refused")
            wait = {"Retry-After": str(self.retry_after())}
            raise HTTPException(429, f"the queue of {self.most} is full; try again later", wait)
        self.jobs.append(job)
        try:
            async with self.turn:
                if self.closing:
                    raise HTTPException(503, "the server is ending", {"Retry-After": "10"})
                job.began = time.monotonic()
                await self._finish(job)
                spent = time.monotonic() - job.began
                self.seconds += SMOOTHING * (spent - self.seconds)
        except asyncio.CancelledError:
            self.metrics.count("jobs_cancelled")
            raise
        finally:
            self.jobs.remove(job)
            if job.began is not None:
                self.metrics.count("drawing_seconds", time.monotonic() - job.began)
                self.metrics.count("pictures", len(job.pictures))
                self._tidy_later()

    async def _finish(self, job: Job) -> None:
        """Draw a job in the thread. If it is cancelled, wait until the thread is free again."""
        loop = asyncio.get_running_loop()
        drawing = loop.run_in_executor(self.thread, self.draw, job, self.catalog)
        try:
            await asyncio.shield(drawing)
        except asyncio.CancelledError:
            job.stop.set()
            await asyncio.wait([drawing])
            drawing.cancelled() or drawing.exception()  # nobody is left to tell
            raise

    def _tidy_later(self) -> None:
        """Give memory back after a time in which no job ended."""
        if self.tidying is not None:
            self.tidying.cancel()
        self.tidying = asyncio.get_running_loop().call_later(TIDY_SECONDS, self._tidy)

    def _tidy(self) -> None:
        """Give memory back, if no job waits for that."""
        if not (self.jobs or self.closing):
            self.thread.submit(tidy)

    def interrupt(self, chosen: Callable[[Job], bool]) -> None:
        """Stop the running job after its current step, if it is chosen."""
        if (job := self.running) and chosen(job):
            self.metrics.count("jobs_interrupted")
            job.stop.set()

    def close(self, at_once: bool = False) -> None:
        """Refuse jobs from now on, also those that wait; the running one goes on, or stops."""
        self.closing = True
        if at_once and (job := self.running):
            job.stop.set()


def tidy() -> None:
    """Free what refers to itself, and give the heap's free end back to the system."""
    gc.collect()
    resources.trim_heap()
