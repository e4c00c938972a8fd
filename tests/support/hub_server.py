"""A small server that speaks the Hub's protocol, as far as pulling a model uses it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves, and what goes wrong."""

    files: dict[str, bytes]
    url: str = ""
    gated: bool = False
    cut: str = ""  # a file whose transfer stops half-way, once
    gone: str = ""  # a file that is listed and yet not there
    lie: str = ""  # a file whose bytes are others than its checksum says
    ranges: list[str] = field(default_factory=list)  # that were asked for
    fetched: list[str] = field(default_factory=list)

    def listing(self) -> dict[str, object]:
        """What the API says of the repository."""
        rows = []
        for name, data in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            row: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git}
            if name.endswith(".safetensors"):
                sha = hashlib.sha256(data).hexdigest()
                row["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
            rows.append(row)
        return {"id": "a/m", "sha": COMMIT, "siblings": rows, "tags": ["license:mit"]}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The server, for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, code: int, name: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", name)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            if hub.gated and "token" not in self.headers.get("Authorization", ""):
                self.refuse(403, "GatedRepo")
            elif path.startswith("/api/models/a/m"):
                if path.endswith("/nope"):
                    self.refuse(404, "RevisionNotFound")
                else:
                    self.send(json.dumps(hub.listing()).encode(), "listing", body)
            elif path.startswith(f"/a/m/resolve/{COMMIT}/"):
                name = path.split(f"{COMMIT}/")[1]
                if name not in hub.files or name == hub.gone:
                    self.refuse(404, "EntryNotFound")
                else:
                    self.send(hub.files[name], name, body)
            else:
                self.refuse(404, "RepoNotFound")

        def send(self, data: bytes, name: str, body: bool) -> None:
            start, whole, etag = 0, len(data), hashlib.sha256(data).hexdigest()
            if name == hub.lie:
                data = bytes(len(data))
            asked = self.headers.get("Range")
            if asked and body:
                hub.ranges.append(asked)
                start = int(asked.split("=")[1].split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Linked-Etag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(whole))
            self.send_header("Accept-Ranges", "bytes")
            if start:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.send_header("Content-Length", str(whole - start))
            self.end_headers()
            if body:
                hub.fetched.append(name)
                end = start + (whole - start) // 2 if name == hub.cut else whole
                hub.cut = "" if name == hub.cut else hub.cut
                self.wfile.write(data[start:end])
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
