"""A small server that speaks the Hub's protocol, as far as pulling a model uses it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves, and what goes wrong."""

    files: dict[str, bytes]
    commit: str = COMMIT
    url: str = ""
    gated: bool = False
    cut: str = ""  # a file whose transfer stops half-way, once
    gone: str = ""  # a file that is listed and yet not there
    lie: str = ""  # a file whose bytes are others than its checksum says
    flood: str = ""  # a file that is sent without an end, in pieces
    stall: str = ""  # a file of which half is sent, and then one byte now and then
    etags: dict[str, str] = field(default_factory=dict)  # other ones than the files' hashes
    listed: dict[str, str] = field(default_factory=dict)  # other hashes in the list of files
    fetched: list[str] = field(default_factory=list)
    sent: int = 0  # bytes of files
    stalled: Event = field(default_factory=Event)
    closed: Event = field(default_factory=Event)

    def info(self) -> dict[str, object]:
        """What the API says of the repository."""
        rows = [
            {"rfilename": row["path"], "size": row["size"], "blobId": row["oid"]}
            | ({"lfs": {**row["lfs"], "sha256": row["lfs"]["oid"]}} if "lfs" in row else {})
            for row in self.tree({})
        ]
        return {"id": "a/m", "sha": self.commit, "siblings": rows, "tags": ["license:mit"]}

    def tree(self, hashes: dict[str, str]) -> list[dict[str, object]]:  # type: ignore[type-arg]
        """The list of files, some with other hashes than their own."""
        rows = []
        for name, data in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            row: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git}
            if name.endswith(".safetensors"):
                sha = hashes.get(name) or hashlib.sha256(data).hexdigest()
                row["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 134}
            rows.append(row)
        return rows


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The server, for as long as the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, code: int, name: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", name)
            self.send_header("Connection", "close")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, body: bool) -> None:
            path = unquote(self.path.split("?")[0])
            if hub.gated and "token" not in self.headers.get("Authorization", ""):
                self.refuse(403, "GatedRepo")
            elif path.startswith("/api/models/a/m"):
                if path.endswith("/nope"):
                    self.refuse(404, "RevisionNotFound")
                elif "/tree/" in path:
                    self.send(json.dumps(hub.tree(hub.listed)).encode(), "tree", body)
                else:
                    self.send(json.dumps(hub.info()).encode(), "info", body)
            elif path.startswith(f"/a/m/resolve/{hub.commit}/"):
                name = path.split(f"{hub.commit}/")[1]
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
                start = int(asked.split("=")[1].split("-")[0])
            endless = body and name == hub.flood
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("Connection", "close")
            self.send_header("ETag", f'"{hub.etags.get(name, etag)}"')
            if start:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            if endless:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(whole - start))
            self.end_headers()
            if body:
                hub.fetched.append(name)
                with suppress(ConnectionError):  # of a client that was stopped
                    self.flood() if endless else self.write(data, start, name)

        def write(self, data: bytes, start: int, name: str) -> None:
            half = name == hub.cut or name == hub.stall
            end = start + (len(data) - start) // 2 if half else len(data)
            hub.cut = "" if name == hub.cut else hub.cut
            self.wfile.write(data[start:end])
            hub.sent += end - start
            while name == hub.stall and end < len(data) and not hub.closed.wait(0.01):
                self.wfile.write(data[end : end + 1])
                end += 1
                hub.stalled.set()

        def flood(self) -> None:
            block = bytes(2**20)
            while not hub.closed.is_set():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
                hub.sent += len(block)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
