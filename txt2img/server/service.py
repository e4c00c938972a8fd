"""What all routes share: a client's values become a bounded job, which is drawn while it stays."""

import asyncio
import os
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from io import BytesIO

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.types import Receive

from txt2img.errors import BadFile, BadRequest, ModelNotFound, Txt2imgError
from txt2img.images.formats import PNG, Format
from txt2img.images.image_file import pillow_errors
from txt2img.images.input_image import FORMATS
from txt2img.request import Request
from txt2img.request.a1111_api import picture
from txt2img.request.fields import FIELDS, Field
from txt2img.request.input_image import Margins
from txt2img.request.interval import Interval
from txt2img.request.prompt_line import from_values
from txt2img.request.resolve import AdapterPaths
from txt2img.request.sampler_names import Name
from txt2img.server.bodies import BodyReader
from txt2img.server.catalog import Catalog
from txt2img.server.jobs import Job, Queue
from txt2img.server.metrics import Metrics
from txt2img.system.text import escape, nearest_or_all, shown

PICTURES_MAX = 64  # of a job
STEPS_MAX = 1000
SIDE_MAX = 4096  # pixels, of the square of a picture's size
INPUT_MAX = 2**25  # pixels of a picture that is sent


def _is_plain(row: Field) -> bool:
    """Whether a field's values name nothing: numbers, words of a list, texts of a pattern."""
    return issubclass(row.kind, int | float | Name | Interval | Margins) or bool(row.pattern)


# What clients may set; new fields are theirs only if they name no file.
CLIENT_FIELDS = {
    *("prompt", "negative", "template", "negative_template", "model", "loras"),
    *("image", "mask", "references", "controls", "preprocess", "ip_adapters", "ip_masks"),
    *("upscale", "hires_upscaler"),
    *(name for name, row in FIELDS.items() if _is_plain(row)),
}


@dataclass
class Service:
    """The queue, what is offered, and what each client chose."""

    queue: Queue
    bodies: BodyReader
    base: Request  # the operator's defaults
    metrics: Metrics
    rescan: Callable[[], Catalog]
    note: Callable[[str], None]  # tells the operator
    chosen: dict[str, str] = field(default_factory=dict)  # model by owner
    scanning: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def catalog(self) -> Catalog:
        """What is offered now."""
        return self.queue.catalog

    async def refresh(self) -> None:
        """Look for models and other files again."""
        async with self.scanning:
            self.queue.catalog = await asyncio.to_thread(self.rescan)

    def model(self, name: object, owner: str) -> str:
        """The model of a name; without one, that which its owner chose. ModelNotFound."""
        if name is not None and not isinstance(name, str):
            raise BadRequest(f"model is a name, got {shown(name)}")
        return self.catalog.model(name or self.chosen.get(owner, ""))

    def job(
        self,
        values: Mapping[str, object],
        model: str,
        contents: MutableMapping[str, bytes],
        format: Format = PNG,
        api: str = "",
        owner: str = "",
    ) -> Job:
        """The job of a client's values, by any program's names. BadRequest.

        `contents` are the pictures that came with it; those inside the values are added.
        """
        values = dict(values)
        if isinstance(sent := values.get("references"), list):
            values["references"] = [picture(str(one), contents) for one in sent]
        request = from_values(values, self.base.changed(model=model), contents).seeded()
        check(request, self.base, self.catalog.library, contents)
        return Job(request, model, contents, format, api, owner)

    async def draw(self, receive: Receive, job: Job) -> None:
        """Draw a job, as long as its client is there. ClientDisconnect, Txt2imgError."""
        drawing = asyncio.create_task(self.queue.run(job))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((drawing, gone), return_when=asyncio.FIRST_COMPLETED)
            if not drawing.done():
                raise ClientDisconnect
            drawing.result()
        except Txt2imgError as error:
            if not isinstance(error, BadRequest | ModelNotFound):
                self.note_failure(error)
            raise
        finally:
            for task in (drawing, gone):
                task.cancel()
            await finished(drawing, gone)
        is_whole = len(job.pictures) == job.request.count
        if self.queue.closing and job.stop.is_set() and not is_whole:
            raise HTTPException(503, "the server is ending", {"Retry-After": "10"})

    def note_failure(self, error: Exception) -> None:
        """Tell the operator of a failure that is no client's."""
        if os.environ.get("TXT2IMG_DEBUG"):
            self.note("".join(traceback.format_exception(error)).rstrip())
        self.note(escape(f"Error: {type(error).__name__}: {error}"))


async def finished(*tasks: "asyncio.Task[None]") -> None:
    """Wait until tasks have ended, whatever way."""
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asyncio complains of those that nobody looked at


def service_of(request: HTTPRequest) -> Service:
    """The service of an application."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def owner_of(request: HTTPRequest) -> str:
    """Whose key came with a request; empty if none is needed."""
    return str(getattr(request.state, "owner", ""))


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone. The body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


def check(
    request: Request, base: Request, library: AdapterPaths, contents: Mapping[str, bytes]
) -> None:
    """Raise BadRequest for a request that is too large, or names what its client may not.

    ModelNotFound for a file that is not offered.
    """
    for name in FIELDS:
        if name not in CLIENT_FIELDS and getattr(request, name) != getattr(base, name):
            raise BadRequest(f"{name} is chosen by who runs the server, not by its clients")
    for ref in request.images:
        if ref.hash or ref.name not in contents:
            raise BadRequest(
                f"pictures are sent as base64 or data URLs, not by name: {shown(ref.name)}"
            )
    check_names(request, library)
    if request.count > PICTURES_MAX:
        raise BadRequest(f"at most {PICTURES_MAX} pictures at once, got {request.count:,}")
    for name in ("steps", "hires_steps"):
        if (getattr(request, name) or 0) > STEPS_MAX:
            raise BadRequest(f"at most {STEPS_MAX:,} steps, got {getattr(request, name):,}")
    sides = request.width or SIDE_MAX // 8, request.height or SIDE_MAX // 8
    larger = (request.hires or 1) * (request.upscale_by or 1)
    second = (request.hires_width or 0) * (request.hires_height or 0)
    if max(sides[0] * sides[1] * larger**2, second) > SIDE_MAX**2:
        raise BadRequest(f"a picture has at most {SIDE_MAX**2:,} pixels here")
    for name, content in contents.items():
        check_picture(name, content)


def check_names(request: Request, library: AdapterPaths) -> None:
    """Raise ModelNotFound for a file that is not offered: names lead nowhere else."""
    library.check_upscaler(request)
    adapters = request.ip_adapters
    named = [
        *(("ControlNet", one.model.name, library.controls) for one in request.controls),
        *(("IP-Adapter", one.model.name, library.ip_adapters) for one in adapters),
        *(("image encoder", one.encoder.name, {}) for one in adapters if one.encoder),
        *(
            ("preprocessor's model", name, library.annotators)
            for how in request.preprocess
            for name in how.models
        ),
    ]
    for kind, name, offered in named:
        if name and name not in offered:
            hint = nearest_or_all(name, offered)
            raise ModelNotFound(f"no {kind} {shown(name)} is offered here{hint}")


def check_picture(name: str, content: bytes) -> None:
    """Raise BadRequest for what is no picture, or one of too many pixels. It is not decoded."""
    from PIL import Image

    Image.init()
    try:
        with (
            pillow_errors(),
            Image.open(
                BytesIO(content), formats=[one for one in FORMATS if one in Image.ID]
            ) as image,
        ):
            width, height = image.size
    except (ValueError, BadFile) as error:
        raise BadRequest(f"{shown(name)} is no picture: {error}") from None
    if width * height > INPUT_MAX:
        raise BadRequest(f"a picture of {width:,}x{height:,} pixels; at most {INPUT_MAX:,} in all")
