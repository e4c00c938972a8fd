"""A server in a thread of the tests, with a tiny model."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from txt2img.cli.options.device import DeviceOptions
from txt2img.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.server import app, catalog, drawing, jobs, listen
from txt2img.server.bodies import BodyReader
from txt2img.server.guard import Access
from txt2img.server.metrics import Metrics
from txt2img.server.service import Service
from txt2img.weights import model_cache


@dataclass
class Running:
    """A server, its address and what it wrote."""

    port: int
    service: Service
    server: listen.Server
    connections: listen.Connections
    records: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def start(
    model: str,
    library: AdapterPaths | None = None,
    access: Access | None = None,
    queue: int = 64,
    most: int = listen.CONNECTIONS_MAX,
    bodies: BodyReader | None = None,
    draw: Callable[[jobs.Job, catalog.Catalog], None] | None = None,
) -> tuple[Running, Callable[[], None]]:
    """Start a server; the second value stops it."""
    counters, notes, records = Metrics(), list[str](), list[Mapping[str, object]]()
    rescan = partial(catalog.scan, model, library or AdapterPaths())
    load = DeviceOptions(device="cpu").load_model
    found = rescan()
    line = jobs.Queue(draw or partial(drawing.draw, load), found, queue, counters)
    base = Request("", width=64, height=64, steps=2)
    service = Service(line, bodies or BodyReader(), base, counters, rescan, notes.append)
    connections = listen.Connections(counters, most)
    application = app.make_app(service, access or Access(), connections, records.append)
    listener = listen.bind("127.0.0.1", 0)
    server = listen.make_server(application, connections, line.close)
    thread = threading.Thread(target=listen.serve, args=(server, listener))
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    running = Running(listener.getsockname()[1], service, server, connections, records, notes)

    def stop() -> None:
        server.should_exit = True
        thread.join()
        line.thread.shutdown()
        listener.close()

    return running, stop


@pytest.fixture(scope="module", autouse=True)
def warm() -> Iterator[None]:
    """The model stays in memory between jobs, as in the command."""
    model_cache.MODEL_CACHE.enabled = True
    yield
    model_cache.MODEL_CACHE.enabled = False
    model_cache.MODEL_CACHE.cached = None


@pytest.fixture(scope="module")
def serving(sd1_folder: Path) -> Iterator[Running]:
    """A server with the tiny model."""
    running, stop = start(str(sd1_folder))
    yield running
    stop()
