"""A server of chat completions whose answers a test decides."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class ChatServer:
    """A running server: what it was asked, and what it answers."""

    url: str = ""
    asked: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    answer: Callable[[Body], str] = lambda body: f"a fine picture of {said(body)}"
    status: int = 200
    raw: bytes | None = None  # in place of a chat completion
    endless: bool = False  # send `raw` again and again
    pause: float = 0.0  # seconds between bytes
    location: str = ""  # where it redirects to

    def content(self, body: Body) -> bytes:
        """The content of an answer."""
        if self.raw is not None:
            return self.raw
        message = {"role": "assistant", "content": self.answer(body)}
        return json.dumps({"choices": [{"index": 0, "message": message}]}).encode()


def said(body: Body) -> str:
    """What the user says in a request."""
    return str(body["messages"][-1]["content"])


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Run a server on a free port of this machine."""
    state = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            state.headers.append(dict(self.headers))
            state.paths.append(self.path)
            content = state.content(body)
            try:
                self.send_response(state.status)
                self.send_header("Content-Type", "application/json")
                if state.location:
                    self.send_header("Location", state.location)
                if not state.endless:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self._send(content)
            except (BrokenPipeError, ConnectionResetError):
                pass

        def _send(self, content: bytes) -> None:
            for byte in content if state.pause else ():
                self.wfile.write(bytes([byte]))
                time.sleep(state.pause)
            while not state.pause:
                self.wfile.write(content)
                if not state.endless:
                    break

        def log_message(self, format: str, *arguments: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def dead_url() -> str:
    """An address at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"
