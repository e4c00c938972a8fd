"""The server's application: its routes, its page, and who may reach them."""

import base64
import re
import time
from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from txt2img.errors import Txt2imgError
from txt2img.server import controlnet, openai_api, sdapi
from txt2img.server.answers import http_error, own_error, unexpected_error
from txt2img.server.guard import Access, Guard
from txt2img.server.listen import Connections
from txt2img.server.metrics import Metrics
from txt2img.server.service import Service, service_of
from txt2img.system.version import __version__

Log = Callable[[dict[str, object]], None]
GONE = 499  # nginx's status for a client that went


def make_app(service: Service, access: Access, connections: Connections, log: Log) -> ASGIApp:
    """The application."""
    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/metrics", metrics),
        *openai_api.ROUTES,
        *sdapi.ROUTES,
        *controlnet.ROUTES,
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=access.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
    )
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, access=access), *([cors] if access.origins else [])],
        exception_handlers={
            HTTPException: http_error,
            Txt2imgError: own_error,
            ClientDisconnect: gone,
            Exception: unexpected_error,
        },
    )
    app.state.service, app.state.connections = service, connections
    return Counted(app, service.metrics, log)


class Counted:
    """Counts and logs the answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: Log) -> None:
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = GONE, time.monotonic()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, status)
            seconds = round(time.monotonic() - began, 3)
            line = {"method": scope["method"], "route": route, "status": status}
            self.log({**line, "seconds": seconds})


def gone(request: Request, error: Exception) -> Response:
    """The answer to a client that went, which nobody reads."""
    return Response(status_code=GONE)


async def health(request: Request) -> Response:
    """GET /health: whether the server takes requests."""
    queue = service_of(request).queue
    status = "ending" if queue.closing else "ok"
    return JSONResponse({"status": status, "version": __version__}, 503 if queue.closing else 200)


async def metrics(request: Request) -> Response:
    """GET /metrics, as Prometheus reads them."""
    service = service_of(request)
    running = sum(job.began is not None for job in service.queue.jobs)
    gauges = {
        "jobs_waiting": len(service.queue.jobs) - running,
        "jobs_running": running,
        "connections": len(request.app.state.connections.open),
    }
    return PlainTextResponse(service.metrics.text(gauges), media_type="text/plain; version=0.0.4")


async def page(request: Request) -> Response:
    """GET /: the page."""
    html = (files("txt2img.server") / "page.html").read_text("utf-8")
    return HTMLResponse(html, headers=page_headers(html))


def page_headers(html: str) -> dict[str, str]:
    """Headers that let the page run its own script and style, and nothing else."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [base64.b64encode(sha256(one.encode()).digest()).decode() for one in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = {
        "default-src": "'none'",
        "script-src": hashes("script"),
        "style-src": hashes("style"),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
