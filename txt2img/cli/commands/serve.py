"""txt2img serve: a server with OpenAI's and A1111's APIs, and a page."""

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import typer

from txt2img.cli.options.adapters import AdapterOptions
from txt2img.cli.options.command import grouped
from txt2img.cli.options.compat import CompatOptions
from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.options.picture import GuidanceOptions, PictureOptions
from txt2img.cli.options.server import PORT, QUEUE, ServerOptions
from txt2img.cli.options.speed import SpeedOptions
from txt2img.cli.registry import Command
from txt2img.cli.run_options import RunOptions
from txt2img.cli.terminal.console import BrokenStdout, log, print_json, progress
from txt2img.cli.terminal.signals import STOP
from txt2img.errors import BadRequest, Txt2imgError
from txt2img.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system import user_config
from txt2img.system.missing import install_command

if TYPE_CHECKING:
    from txt2img.server import listen
    from txt2img.server.service import Service

EPILOG = """
\b
Examples:
  txt2img serve
  txt2img serve --model sdxl --lora-dir loras/ --port 8080
  txt2img serve --host 0.0.0.0 --api-key-file keys.txt --allow-host studio.example.org
\b
Options for pictures are the defaults of requests. Models are offered by the
names of txt2img models list, LoRAs by those in --lora-dir and the folders of
models. Fields of A1111's API and of prompt files are taken by /v1 too: seed,
steps, negative_prompt, …. The first SIGINT or SIGTERM ends the server once the
picture in work is answered (exit code 0), the second one at once (130, 143).
"""
EXTRA = {"starlette": "starlette", "uvicorn": "uvicorn", "python-multipart": "python_multipart"}
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@grouped
def serve(
    server: ServerOptions,
    picture: PictureOptions,
    guidance: GuidanceOptions,
    adapters: AdapterOptions,
    compat: CompatOptions,
    speed: SpeedOptions,
    device: DeviceOptions,
) -> None:
    """Answer OpenAI's images API, A1111's API and a page in the browser.

    One picture is drawn at a time, with one model in memory; other requests wait.
    """
    server.check()
    if picture.count is not None:
        raise BadRequest(
            "each request says how many pictures it wants (n, batch_size); leave out --count"
        )
    device.check()
    require_extra()
    keys = server.keys()
    options = RunOptions(
        picture=picture,
        guidance=guidance,
        adapters=adapters,
        compat=compat,
        speed=speed,
        device=device,
    )
    library = options.library()
    fields = options.request_fields()
    configured = str(user_config.read_config().defaults.get("model", "default"))
    model = str(fields.pop("model", None) or configured)
    base = Request.from_json({"prompt": "", **fields, "count": 1})
    code = run(server, keys, base, model, library, device)
    if code:
        raise typer.Exit(code)


def require_extra() -> None:
    """Raise Txt2imgError unless the libraries of the extra "serve" are installed."""
    missing = [name for name, module in EXTRA.items() if find_spec(module) is None]
    if missing:
        lines = " && ".join(install_command(name) for name in missing)
        raise Txt2imgError(f"serving needs the extra serve, of which some is missing: {lines}")


def run(
    server: ServerOptions,
    keys: tuple[str, ...],
    base: Request,
    model: str,
    library: AdapterPaths,
    device: DeviceOptions,
) -> int:
    """Listen, load the model and serve until a signal comes. Returns the exit code."""
    from txt2img.server import catalog, drawing, jobs, listen
    from txt2img.server.bodies import BodyReader
    from txt2img.server.metrics import Metrics
    from txt2img.server.service import Service
    from txt2img.weights import model_cache

    model_cache.MODEL_CACHE.enabled = True
    rescan = partial(catalog.scan, model, library)

    with listen.bind(server.host, PORT if server.port is None else server.port) as listener:
        counters, found = Metrics(), rescan()
        draw, most = partial(drawing.draw, device.load_model), server.queue or QUEUE
        queue = jobs.Queue(draw, found, most, counters)
        with progress(True, f"loading {found.default}"):
            queue.thread.submit(
                device.load_model, found.models[found.default], found.library
            ).result()
        service = Service(queue, BodyReader(), base, counters, rescan, log)
        ending = make_server(server, keys, service)
        STOP.ignore()  # from here on the server handles signals
        if server.host not in LOOPBACK and not keys:
            log("Warning: without --api-key-file everybody who reaches this host may draw")
        log(f"Serving {found.default} at {address(server.host, listener.getsockname()[1])}")
        return listen.serve(ending, listener)


def make_server(
    server: ServerOptions, keys: tuple[str, ...], service: "Service"
) -> "listen.Server":
    """The server of a service, which records its answers with --json."""
    from txt2img.server import app, listen
    from txt2img.server.guard import Access

    def record(line: dict[str, object]) -> None:
        try:
            if server.json:
                print_json(line)
        except BrokenStdout:
            made.should_exit = True  # who reads the records has gone

    connections = listen.Connections(service.metrics)
    access = Access(keys, tuple(server.allow_host or ()), tuple(server.cors_origin or ()))
    application = app.make_app(service, access, connections, record)
    made = listen.make_server(application, connections, service.queue.close)
    return made


def address(host: str, port: int) -> str:
    """The page's address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


COMMAND: Command = serve, EPILOG
