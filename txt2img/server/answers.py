"""Answers: JSON, pictures as base64, and errors in the shape of the API that was asked."""

import base64
import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from txt2img.errors import BadRequest, ModelNotFound, OutOfMemory, Txt2imgError
from txt2img.server.bodies import drain

# Types and codes of OpenAI's errors, by status.
TYPES = {401: "authentication_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}
# Paths of this machine: in quotes, as messages have them; else two parts at least, up to a space or
# a sign that ends it.
QUOTED = re.compile(r'"(?:[~/]|[A-Za-z]:\\)[^"]*?([^"/\\]*)"')
PATH = re.compile(r"(?<![\w/.:~-])~?(?:/[^/\s\"'`,;:()<>|…]+)+/([^/\s\"'`,;:()<>|]*)")


class ErrorResponse(JSONResponse):
    """An error; of a request whose body was not read, some of it is read and thrown away.

    Closing the connection on a client that still sends would lose it the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then read what still comes, for a while."""
        if scope["method"] in ("GET", "HEAD") or scope.get("state", {}).get("body_read"):
            await super().__call__(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await drain(receive)
        await send({"type": "http.response.body", "body": b""})


def error(request: Request, status: int, message: str, headers: dict[str, str]) -> Response:
    """An error in the shape of the API that was asked."""
    path = request.url.path
    if path.startswith("/v1"):
        kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        code = "model_not_found" if message.startswith("no model") else CODES.get(status)
        content: object = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    elif path.startswith(("/sdapi", "/controlnet")):
        content = {"error": "HTTPException", "detail": message, "body": "", "errors": message}
    else:
        content = {"detail": message}
    return ErrorResponse(content, status, headers)


def http_error(request: Request, exception: Exception) -> Response:
    """The answer to an HTTPException."""
    assert isinstance(exception, HTTPException)
    headers = dict(exception.headers or {})
    return error(request, exception.status_code, exception.detail, headers)


def own_error(request: Request, exception: Exception) -> Response:
    """The answer to a Txt2imgError: the client's fault if its request cannot be drawn."""
    assert isinstance(exception, Txt2imgError)
    kinds = {ModelNotFound: 404, BadRequest: 400, OutOfMemory: 400}
    status = next((code for kind, code in kinds.items() if isinstance(exception, kind)), 500)
    return error(request, status, without_paths(str(exception)), {})


def unexpected_error(request: Request, exception: Exception) -> Response:
    """The answer to a mistake of the server's own, of which its operator alone is told."""
    request.app.state.service.note_failure(exception)
    return error(request, 500, "internal error", {})


def without_paths(text: str) -> str:
    """A message without this machine's folders: of a path only the last part stays."""
    return PATH.sub(r"\1", QUOTED.sub(r'"\1"', text))


def base64_of(data: bytes) -> str:
    """A file as text."""
    return base64.b64encode(data).decode("ascii")
