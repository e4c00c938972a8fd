"""Listens on a port: uvicorn, with bounds on connections, and an end that answers who waits.

uvicorn bounds neither the number of connections nor the time until a request comes.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from txt2img.errors import BadRequest
from txt2img.server.metrics import Metrics
from txt2img.system.files import reason
from txt2img.system.text import shown

CONNECTIONS_MAX = 512
WAIT_SECONDS = 10.0  # for a request's headers
SEND_SECONDS = 30.0  # for a part of an answer to be taken
PART = 256 << 10  # bytes
BACKLOG = 128  # connections that the system holds; uvicorn takes so many at once
FILES = 4 * CONNECTIONS_MAX  # that may be open


class State(Enum):
    """What a connection does."""

    WAITING = "waiting"  # for a request
    SENDING = "sending"  # its request's body
    SERVED = "served"


@dataclass(eq=False)
class Connection:
    """A client's connection."""

    transport: asyncio.Transport
    state: State = State.WAITING
    since: float = field(default_factory=time.monotonic)
    answered: bool = False  # once at least

    def turn(self, state: State) -> None:
        """Change the state, or note that it goes on."""
        self.answered = self.answered or self.state is State.SERVED
        self.state, self.since = state, time.monotonic()


class Connections:
    """The open connections, at most so many: for a new one that is closed which rests longest.

    A client that is served is not, and those never answered go first. So who opens thousands closes
    its own.
    """

    def __init__(self, metrics: Metrics, most: int = CONNECTIONS_MAX) -> None:
        self.metrics, self.most = metrics, most
        self.open: dict[object, Connection] = {}  # by the client's address and port

    def opened(self, transport: asyncio.Transport) -> None:
        """Note a new connection, and close one if there are too many."""
        self.open[peer(transport)] = connection = Connection(transport)
        asyncio.get_running_loop().call_later(WAIT_SECONDS, self._expire, connection)
        if len(self.open) > self.most:
            resting = [one for one in self.open.values() if one.state is not State.SERVED]
            self._close(min(resting, key=lambda one: (one.answered, one.since)))

    def closed(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        self.open.pop(peer(transport), None)

    def _close(self, connection: Connection) -> None:
        self.metrics.count("connections_closed")
        self.closed(connection.transport)
        connection.transport.abort()

    def _expire(self, connection: Connection) -> None:
        """Close a connection that has waited for too long; else look again later."""
        if connection.transport.is_closing():
            return
        waited = time.monotonic() - connection.since
        if connection.state is State.WAITING and waited >= WAIT_SECONDS:
            self._close(connection)
            return
        left = WAIT_SECONDS - waited if connection.state is State.WAITING else WAIT_SECONDS
        asyncio.get_running_loop().call_later(max(left, 0.1), self._expire, connection)

    def tracked(self, app: ASGIApp) -> ASGIApp:
        """The application, which tells what its connections do, and bounds the time of answers."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            connection = self.open.get(tuple(scope.get("client") or ()))
            if scope["type"] != "http" or connection is None:
                await app(scope, receive, send)
                return

            async def receive_part() -> Message:
                message = await receive()
                if message["type"] == "http.request":
                    has_more = message.get("more_body")
                    connection.turn(State.SENDING if has_more else State.SERVED)
                return message

            async def send_part(message: Message) -> None:
                await in_parts(message, send, connection.transport)

            connection.turn(State.SENDING)
            try:
                await app(scope, receive_part, send_part)
            finally:
                connection.turn(State.WAITING)

        return call


async def in_parts(message: Message, send: Send, transport: asyncio.Transport) -> None:
    """Send a message; its body in parts, each of which the client has to take in time."""
    body = message.get("body", b"")
    for start in range(0, max(len(body), 1), PART):
        part = message
        if len(body) > PART:
            more = message.get("more_body", False) or start + PART < len(body)
            part = {**message, "body": body[start : start + PART], "more_body": more}
        try:
            await asyncio.wait_for(send(part), SEND_SECONDS)
        except TimeoutError:
            transport.abort()
            raise


def peer(transport: asyncio.BaseTransport) -> tuple[object, ...]:
    """The address and port of the other end."""
    return tuple((transport.get_extra_info("peername") or ())[:2])


def protocol(connections: Connections) -> type[H11Protocol]:
    """uvicorn's protocol, which tells `connections` of its connections."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.opened(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.closed(self.transport)
            super().connection_lost(exc)

    return Protocol


class Server(uvicorn.Server):
    """uvicorn's server: the first signal ends it gracefully, the second one at once."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[bool], None]) -> None:
        super().__init__(config)
        self.on_stop, self.signals, self.number = on_stop, 0, 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self.signals, self.number = self.signals + 1, sig
        if self.signals > 2:
            os._exit(128 + sig)
        self.should_exit = True
        self.on_stop(self.signals > 1)


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. BadRequest if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        why = reason(error).partition(" (while ")[0]
        raise BadRequest(f"cannot listen on {shown(host)}, port {port}: {why}") from error
    # Connections inherit it; without it an answer's body waits 40 ms for its head to be confirmed.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def allow_files() -> None:
    """Let this process open as many files as it needs, where there is a limit."""
    try:
        import resource
    except ImportError:  # as on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def make_server(app: ASGIApp, connections: Connections, on_stop: Callable[[bool], None]) -> Server:
    """A server for an application."""
    allow_files()
    config = uvicorn.Config(
        connections.tracked(app),
        http=protocol(connections),
        ws="none",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(WAIT_SECONDS),
    )
    return Server(config, on_stop)


def serve(server: Server, listener: socket.socket) -> int:
    """Serve until a signal comes. Returns the exit code: 0 if all that was begun was answered."""
    server.run([listener])
    return 128 + server.number if server.signals > 1 else 0
