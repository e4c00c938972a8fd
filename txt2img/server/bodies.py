"""Bodies of requests: read with bounds on their size, their time, and the memory of all of them."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from txt2img.system.files import parse_json

BODY_MAX = 64 << 20  # bytes
ALL_BODIES_MAX = 512 << 20  # bytes that are held at once
VALUES_MAX = 100_000  # in a JSON text: lists of millions would take long to read
FIELDS_MAX, FILES_MAX, FIELD_MAX = 64, 17, 1 << 20  # of a form; bytes of a field's text
PAUSE_SECONDS = 15.0  # between two parts of a body
GRACE_SECONDS, RATE_MIN = 30.0, 64 << 10  # from then on so many bytes a second, in the mean
DRAIN_SECONDS, DRAIN_MAX = 2.0, 64 << 20  # bytes


class BodyReader:
    """Reads bodies; knows how many bytes all requests hold."""

    def __init__(self, most: int = BODY_MAX, all_most: int = ALL_BODIES_MAX) -> None:
        self.most, self.all_most, self.held = most, all_most, 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body, which counts as held until the context ends.

        HTTPException: 413 if it is too large, 408 if it comes too slowly, 503 if others hold too
        much.
        """
        declared = request.headers.get("content-length", "0")
        if not declared.isascii() or not declared.isdigit() or int(declared[:20]) > self.most:
            raise self._too_large()
        parts, size = list[bytes](), 0
        try:
            async for part in self._parts(request.receive):
                size += len(part)
                self.held += len(part)
                parts.append(part)
                if size > self.most:
                    raise self._too_large()
                if self.held > self.all_most:
                    raise HTTPException(503, "too much is being sent", {"Retry-After": "5"})
            request.state.body_read = True
            content = b"".join(parts)
            parts.clear()
            yield content
        finally:
            self.held -= size

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self.most >> 20} MiB")

    async def _parts(self, receive: Receive) -> AsyncGenerator[bytes, None]:
        """The parts of a body. HTTPException 408, ClientDisconnect."""
        began, size = time.monotonic(), 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), PAUSE_SECONDS)
            except TimeoutError:
                raise HTTPException(408, "the body comes too slowly") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            yield part
            if not message.get("more_body"):
                return
            if time.monotonic() - began > GRACE_SECONDS + size / RATE_MIN:
                raise HTTPException(408, "the body comes too slowly")


async def drain(receive: Receive) -> None:
    """Read the rest of a body and throw it away, for a short time and up to a size."""
    size = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request":
                size += len(message.get("body", b""))
                if not message.get("more_body") or size > DRAIN_MAX:
                    return
    except TimeoutError:
        return


def json_object(body: bytes) -> dict[str, object]:
    """The JSON object in a body. HTTPException 400."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES_MAX:
        raise HTTPException(400, f"the JSON has more than {VALUES_MAX:,} values")
    try:
        value = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise HTTPException(400, "the body is not UTF-8 text") from None
    except ValueError as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "the body is no JSON object")
    return value


async def form(headers: Headers, body: bytes) -> FormData:
    """The fields of a multipart form, whose files stay in memory. HTTPException 400."""

    async def parts() -> AsyncGenerator[bytes, None]:
        yield body

    if not headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(400, "the body must be multipart/form-data")
    bounds = {"max_files": FILES_MAX, "max_fields": FIELDS_MAX, "max_part_size": FIELD_MAX}
    parser = MultiPartParser(headers, parts(), **bounds)
    parser.spool_max_size = len(body) + 1  # no temporary files
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None


def json_values(fields: Iterable[tuple[str, object]]) -> dict[str, object]:
    """A form's texts as JSON would have them: numbers and true or false as such."""
    values: dict[str, object] = {}
    for name, text in fields:
        if isinstance(text, str):
            try:
                value = parse_json(text) if name != "prompt" and len(text) < 64 else text
            except ValueError:
                value = text
            values[name] = value if isinstance(value, int | float | bool) else text
    return values
