"""OpenAI's images API: generations, edits and models, with partial pictures as events.

Other fields of a request than OpenAI's are those of A1111's API and of prompt files: seed, steps,
negative_prompt, and so on.
"""

import asyncio
import json
import re
import time
from collections.abc import MutableMapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from io import BytesIO

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from txt2img.errors import BadFile, BadRequest, Txt2imgError
from txt2img.images import formats
from txt2img.images.formats import Format
from txt2img.images.input_image import open_image
from txt2img.request.a1111_api import EMBEDDED
from txt2img.server.answers import base64_of, without_paths
from txt2img.server.bodies import form, json_object, json_values
from txt2img.server.jobs import Job
from txt2img.server.service import Service, check_picture, finished, owner_of, service_of
from txt2img.system.text import shown

Values = dict[str, object]
# Fields that decide nothing here.
IGNORED = (
    *("quality", "style", "user", "moderation", "safety_identifier", "input_fidelity"),
    *("complexity", "prompt_rewriter"),
)
PARTIALS_MAX = 3
HEARTBEAT_SECONDS = 15.0


async def generations(request: Request) -> Response:
    """POST /v1/images/generations."""
    service = service_of(request)
    async with AsyncExitStack() as stack:
        body = await stack.enter_async_context(service.bodies.body(request))
        values = await asyncio.to_thread(json_object, body)
        return await drawn(request, service, values, {}, stack)


async def edits(request: Request) -> Response:
    """POST /v1/images/edits: a form with pictures, and a mask whose transparent part is drawn."""
    service = service_of(request)
    async with AsyncExitStack() as stack:
        body = await stack.enter_async_context(service.bodies.body(request))
        fields = await form(request.headers, body)
        values, contents = json_values(fields.multi_items()), dict[str, bytes]()
        try:
            images = await take_files(fields, values, contents)
        finally:
            await fields.close()
        values |= edited(images, "mask" in values or "strength" in values)
        return await drawn(request, service, values, contents, stack)


async def take_files(
    fields: FormData, values: Values, contents: MutableMapping[str, bytes]
) -> list[str]:
    """The names of the images in a form; `contents` gets the files, `values` the mask's name."""
    images: list[str] = []
    for number, (name, file) in enumerate(fields.multi_items()):
        if isinstance(file, str):
            continue
        content, key = await file.read(), f"{EMBEDDED}{number}"
        if name in ("image", "image[]"):
            images.append(key)
            contents[key] = content
        elif name == "mask":
            contents[key] = await asyncio.to_thread(repaint_mask, content)
            values["mask"] = key
        else:
            raise HTTPException(400, f"no file is called {shown(name)}; send image or mask")
    if not images:
        raise HTTPException(400, "an edit needs an image")
    return images


def edited(images: list[str], repaints: bool) -> Values:
    """The fields of pictures to edit: to repaint, or for a model that looks at them."""
    if repaints:
        return {"image": images[0]} | ({"references": images[1:]} if images[1:] else {})
    return {"references": images}


async def models(request: Request) -> Response:
    """GET /v1/models."""
    listed = [model_object(name) for name in service_of(request).catalog.models]
    return JSONResponse({"object": "list", "data": listed})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    return JSONResponse(model_object(service_of(request).catalog.model(request.path_params["id"])))


def model_object(name: str) -> Values:
    """A model as OpenAI's API describes it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "txt2img"}


async def drawn(
    request: Request,
    service: Service,
    values: Values,
    contents: MutableMapping[str, bytes],
    stack: AsyncExitStack,
) -> Response:
    """The answer to a request for pictures. Raises as `Service.draw`."""
    owner = owner_of(request)
    stream, partials = take_stream(values)
    format = take_format(values)
    name = service.model(values.pop("model", None), owner)
    fields = take_fields(values)
    job = await asyncio.to_thread(service.job, fields, name, contents, format, "openai", owner)
    job.partials = partials
    if stream:
        kind = "image_edit" if contents else "image_generation"
        return EventStream(service, job, kind, stack.pop_all())
    await service.draw(request.receive, job)
    return JSONResponse(answer(job))


def answer(job: Job) -> Values:
    """The answer with a job's pictures; each with its seed, which is not OpenAI's."""
    pictures = [
        {"b64_json": base64_of(picture.data), "seed": picture.request.seed}
        for picture in job.pictures
    ]
    return {"created": int(time.time()), "data": pictures, **described(job)}


def described(job: Job) -> dict[str, str]:
    """What OpenAI's answers say of the pictures."""
    request = job.pictures[0].request if job.pictures else job.request
    size = f"{request.width}x{request.height}" if request.width and request.height else "auto"
    background = "transparent" if request.transparent and not request.background else "opaque"
    form = job.format.name.lower()
    return {"size": size, "background": background, "output_format": form, "quality": "auto"}


def take_stream(values: Values) -> tuple[bool, int]:
    """Whether events are asked for, and the number of partial pictures. BadRequest."""
    stream, partials = values.pop("stream", None) or False, values.pop("partial_images", None) or 0
    if not isinstance(stream, bool):
        raise BadRequest(f"stream must be true or false, got {shown(stream)}")
    if type(partials) is not int or not 0 <= partials <= PARTIALS_MAX:
        raise BadRequest(f"partial_images must be 0 … {PARTIALS_MAX}, got {shown(partials)}")
    return stream, partials


def take_format(values: Values) -> Format:
    """The format of the pictures. BadRequest."""
    name, quality = values.pop("output_format", None), values.pop("output_compression", None)
    if (how := values.pop("response_format", None)) not in (None, "b64_json"):
        raise BadRequest(f"response_format must be b64_json: no files are kept; got {shown(how)}")
    format = formats.PNG if name is None else formats.by_name(str(name))
    formats.check_writable(format)
    if quality is None or format.quality is None:
        return format
    if type(quality) is not int or not 0 <= quality <= 100:
        raise BadRequest(f"output_compression must be 0 … 100, got {shown(quality)}")
    return replace(format, quality=max(quality, formats.QUALITIES[0]))


def take_fields(values: Values) -> Values:
    """The fields of a request, by our names and A1111's. BadRequest."""
    fields = {name: value for name, value in values.items() if name not in IGNORED}
    if "prompt" not in fields:
        raise BadRequest('a request needs a "prompt"')
    if (count := fields.pop("n", None)) is not None:
        fields["count"] = count
    size = fields.pop("size", None)
    if size not in (None, "auto"):
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", str(size))
        if match is None:
            raise BadRequest(f"size is auto or as 512x768, got {shown(size)}")
        fields |= {"width": int(match[1]), "height": int(match[2])}
    background = fields.get("background")
    if background in ("transparent", "opaque", "auto", None):  # else it is a colour
        fields.pop("background", None)
        fields |= {"transparent": "border"} if background == "transparent" else {}
    return fields


def repaint_mask(content: bytes) -> bytes:
    """A mask in which white is repainted, of one whose transparent part is. BadRequest.

    A mask without transparency is one of ours already.
    """
    from PIL import Image, ImageOps

    check_picture("mask", content)
    try:
        pixels = open_image(BytesIO(content), "mask").pixels
    except BadFile as error:
        raise BadRequest(str(error)) from None
    if pixels.mode != "RGBA":
        return content
    file = BytesIO()
    mask: Image.Image = ImageOps.invert(pixels.getchannel("A"))
    mask.save(file, "PNG")
    return file.getvalue()


class EventStream(Response):
    """A job's pictures as server-sent events: partial ones while it is drawn, then each."""

    media_type = "text/event-stream"

    def __init__(self, service: Service, job: Job, kind: str, held: AsyncExitStack) -> None:
        super().__init__()
        self.service, self.job, self.kind, self.held = service, job, kind, held
        self.changed = asyncio.Event()
        self.sent = self.partials_sent = 0  # pictures; partial ones

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Draw the job, and send events while the client stays."""
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            loop.call_soon_threadsafe(self.changed.set)

        self.job.on_change = on_change
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        async with self.held:
            drawing = asyncio.create_task(self.service.draw(receive, self.job))
            drawing.add_done_callback(lambda _: self.changed.set())
            try:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                while not drawing.done():
                    await self._send_new(send)
                    self.changed.clear()
                    if not drawing.done():
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self.changed.wait(), HEARTBEAT_SECONDS)
                await self._end(drawing, send)
            finally:
                drawing.cancel()
                await finished(drawing)

    async def _end(self, drawing: "asyncio.Task[None]", send: Send) -> None:
        """Send the last pictures, or what went wrong."""
        error = drawing.exception()
        if isinstance(error, ClientDisconnect):
            return
        await self._send_new(send)
        if error is not None:
            known = isinstance(error, Txt2imgError | HTTPException)
            if not known and isinstance(error, Exception):
                self.service.note_failure(error)
            text = getattr(error, "detail", str(error)) if known else "internal error"
            about = {"message": without_paths(text), "type": "server_error", "code": None}
            await send_event(send, "error", {"type": "error", "error": about})
        await send({"type": "http.response.body", "body": b""})

    async def _send_new(self, send: Send) -> None:
        """Send the events of what was drawn since; a comment if nothing was."""
        common = {"created_at": int(time.time()), **described(self.job)}
        before = self.sent, self.partials_sent
        while self.partials_sent < len(self.job.previews):
            _, data = self.job.previews[self.partials_sent]
            row = {"partial_image_index": self.partials_sent, "b64_json": base64_of(data)}
            row["output_format"] = "png"
            self.partials_sent += 1
            await send_event(send, f"{self.kind}.partial_image", {**common, **row})
        while self.sent < len(self.job.pictures):
            picture = self.job.pictures[self.sent]
            self.sent += 1
            usage = dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), 0)
            about = {**usage, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
            row = {"b64_json": base64_of(picture.data), "seed": picture.request.seed}
            await send_event(send, f"{self.kind}.completed", {**common, **row, "usage": about})
        if before == (self.sent, self.partials_sent):
            await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})


async def send_event(send: Send, kind: str, content: Values) -> None:
    """Send one event."""
    text = f"event: {kind}\ndata: {json.dumps({'type': kind, **content})}\n\n"
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


ROUTES = [
    Route("/v1/images/generations", generations, methods=["POST"]),
    Route("/v1/images/edits", edits, methods=["POST"]),
    Route("/v1/models", models),
    Route("/v1/models/{id:path}", model),
]
