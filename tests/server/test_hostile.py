"""Clients that send too much, too slowly, nonsense, or names that lead out: nobody else is hurt."""

import base64
import json
import os
import select
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from io import BytesIO
from itertools import product
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import requests
from PIL import Image

from tests.server.conftest import Running, start
from txt2img.errors import BadFile
from txt2img.images.record import Origin
from txt2img.request.fields import FIELDS
from txt2img.request.input_image import ImagePaths
from txt2img.request.resolve import AdapterPaths
from txt2img.server import bodies, drawing, listen
from txt2img.server.bodies import BodyReader
from txt2img.server.catalog import Catalog
from txt2img.server.guard import Access
from txt2img.server.jobs import Job, Picture
from txt2img.system.text import shown

GENERATIONS, TXT2IMG, IMG2IMG = "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
MARK = "secret-of-this-machine"
SENT = base64.b64encode(drawing.png_of(Image.new("RGB", (64, 64), "red"))).decode()


def seed_as_picture(job: Job, catalog: Catalog) -> None:
    """Draw a pixel whose colour is the seed."""
    for i in range(job.request.count):
        one = job.request.nth(i)
        assert one.seed is not None
        image = Image.new(
            "RGB", (1, 1), (one.seed >> 16 & 255, one.seed >> 8 & 255, one.seed & 255)
        )
        job.pictures.append(Picture(drawing.png_of(image), one, Origin()))
        time.sleep(0.002)


@pytest.fixture
def serve_with(sd1_folder: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers, which are stopped at the end."""
    stops = []

    def run(**settings: object) -> Running:
        running, stop = start(str(sd1_folder), **settings)  # type: ignore[arg-type]
        stops.append(stop)
        return running

    yield run
    for stop in stops:
        stop()


def is_well(running: Running) -> bool:
    """Whether others are served, and soon."""
    began = time.monotonic()
    answer = requests.get(f"{running.url}/health", timeout=10)
    return answer.status_code == 200 and time.monotonic() - began < 5


def many_clients(running: Running, clients: int, each: int, steps: int) -> dict[int, bytes]:
    """Pictures by seed, of clients that each ask one after another; half of them by each API."""

    def ask(client: int) -> dict[int, bytes]:
        drawn = {}
        with requests.Session() as session:
            for number in range(each):
                seed = client * 1000 + number
                values = {"prompt": f"number {seed}", "seed": seed, "steps": steps}
                path = GENERATIONS if client % 2 else TXT2IMG
                answer = session.post(running.url + path, json=values, timeout=300)
                assert answer.status_code == 200, answer.text
                content = answer.json()
                text = content["data"][0]["b64_json"] if client % 2 else content["images"][0]
                drawn[seed] = base64.b64decode(text)
        return drawn

    with ThreadPoolExecutor(clients) as pool:
        return {
            seed: data for drawn in pool.map(ask, range(clients)) for seed, data in drawn.items()
        }


def test_200_requests_of_20_clients_are_answered_each_with_its_own(
    serve_with: Callable[..., Running],
) -> None:
    running = serve_with(draw=seed_as_picture)
    drawn = many_clients(running, 20, 10, 2)
    assert len(drawn) == 200
    for seed, data in drawn.items():
        red, green, blue = Image.open(BytesIO(data)).getpixel((0, 0))  # type: ignore[misc]
        assert red << 16 | green << 8 | blue == seed
    assert running.service.metrics.values["pictures", ""] == 200


@pytest.mark.slow
def test_200_real_pictures_of_20_clients_have_their_own_prompts(serving: Running) -> None:
    drawn = many_clients(serving, 20, 10, 1)
    assert len(drawn) == len(set(drawn.values())) == 200
    for seed, data in drawn.items():
        text = Image.open(BytesIO(data)).text["parameters"]  # type: ignore[attr-defined]
        assert text.startswith(f"number {seed}\n")
        assert f"Seed: {seed}," in text


def test_a_full_queue_answers_when_to_come_again(serve_with: Callable[..., Running]) -> None:
    free = threading.Event()
    running = serve_with(draw=lambda job, catalog: free.wait(30) and None, queue=2)
    with ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(requests.post, running.url + GENERATIONS, json={"prompt": "a"}, timeout=60)
            for _ in range(3)
        ]
        while len(running.service.queue.jobs) < 3:
            time.sleep(0.01)
        for path in (GENERATIONS, TXT2IMG):
            refused = requests.post(running.url + path, json={"prompt": "a"}, timeout=10)
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
        assert is_well(running)
        free.set()
        assert [one.result().status_code for one in asked] == [200] * 3


def test_a_large_body_is_refused_before_it_is_read(serving: Running) -> None:
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as connection:
        head = f"POST {TXT2IMG} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 30}\r\n\r\n"
        connection.sendall(head.encode() + b"x" * 1000)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
    assert serving.service.bodies.held == 0


def test_a_body_of_unknown_length_is_bounded(serve_with: Callable[..., Running]) -> None:
    running = serve_with(bodies=BodyReader(most=1 << 20))
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1 << 14):  # a gigabyte
            sent += 1 << 16
            yield b" " * (1 << 16)

    try:
        answer = requests.post(running.url + TXT2IMG, data=parts(), timeout=60)
        assert answer.status_code == 413
    except requests.ConnectionError:
        pass  # it went on sending, until the connection was closed
    assert sent < 1 << 30
    assert is_well(running)


def test_all_bodies_together_are_bounded(serve_with: Callable[..., Running]) -> None:
    running = serve_with(bodies=BodyReader(most=1 << 20, all_most=1 << 20))
    head = f"POST {TXT2IMG} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 600000\r\n\r\n"
    with ExitStack() as stack:
        sending = [
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            for _ in range(2)
        ]
        for connection in sending:
            connection.sendall(head.encode() + b" " * 599_999)
        answered, _, _ = select.select(sending, [], [], 10)
        assert [one.recv(1000)[:12] for one in answered] == [b"HTTP/1.1 503"]
    assert is_well(running)


def test_slow_clients_are_left(
    serve_with: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(bodies, "DRAIN_SECONDS", 0.1)
    monkeypatch.setattr(listen, "WAIT_SECONDS", 0.3)
    running = serve_with()
    head = f"POST {TXT2IMG} HTTP/1.1\r\nHost: localhost\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as endless:
        with suppress(ConnectionError):
            for letter in head:  # a header that never ends
                endless.sendall(letter.encode())
                time.sleep(0.05)
        assert not received(endless)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as silent:
        assert not received(silent)
    assert is_well(running)


def received(connection: socket.socket) -> bytes:
    """What comes; nothing if the connection was closed or reset."""
    try:
        return connection.recv(1000)
    except ConnectionError:
        return b""


def test_thousands_of_connections_keep_nobody_out(serve_with: Callable[..., Running]) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    running = serve_with(most=50, draw=seed_as_picture)
    head = f"POST {TXT2IMG} HTTP/1.1\r\nHost: localhost\r\n"
    starts = (b"", head.encode(), f"{head}Content-Length: 9999999\r\n\r\n{{".encode())
    idle = []
    try:
        with requests.Session() as working:
            for number in range(1500):
                idle.append(socket.create_connection(("127.0.0.1", running.port), timeout=10))
                idle[-1].sendall(starts[number % 3])
                if number % 250 == 0:
                    answer = working.post(running.url + TXT2IMG, json={"seed": number}, timeout=20)
                    assert answer.status_code == 200
        assert is_well(running)
        assert len(running.connections.open) <= 51
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_client_that_takes_no_answer_is_left(
    serve_with: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "SEND_SECONDS", 0.3)

    def draw_much(job: Job, catalog: Catalog) -> None:
        one = job.request.seeded()
        job.pictures.append(Picture(os.urandom(8 << 20), one, Origin()))

    running = serve_with(draw=draw_much)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        body = json.dumps({"prompt": "a"})
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        deadline = time.monotonic() + 10
        while running.connections.open and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running.connections.open
    assert is_well(running)


NONSENSE = [
    *(b"", b"null", b"[]", b'"a"', b"1" * 10_000, b"{" * 100_000, b"[" * 1_000_000, b"\xff\xfe\0"),
    *(b'{"prompt": "a", "prompt": "b"}', b'{"prompt": NaN}', b'{"prompt": 1e999}', b'{"a": '),
    *(b"[" + b"1," * 200_000 + b"1]", b'{"prompt": "\\ud800"}', b'{"prompt": "\\u0000"}'),
]


@pytest.mark.parametrize("path", [GENERATIONS, TXT2IMG, IMG2IMG])
def test_nonsense_is_refused(serving: Running, path: str) -> None:
    for body in NONSENSE:
        answer = requests.post(serving.url + path, data=body, timeout=30)
        assert 400 <= answer.status_code < 500, (body[:40], answer.text)
        answer.json()


APIS = (GENERATIONS, TXT2IMG)
Call = tuple[str, dict[str, object]]


def posted(running: Running, calls: list[Call]) -> Iterator[tuple[Call, requests.Response]]:
    """The answers to calls, eight at a time."""
    with requests.Session() as session, ThreadPoolExecutor(8) as pool:

        def post(call: Call) -> requests.Response:
            return session.post(running.url + call[0], json=call[1], timeout=60)

        yield from zip(calls, pool.map(post, calls), strict=True)


def resolve_only(job: Job, catalog: Catalog) -> None:
    """Find all that a job names, as before it is drawn."""
    library = replace(catalog.library, images=ImagePaths(embedded=dict(job.contents)))
    model = SimpleNamespace(family=SimpleNamespace(takes_references=True))
    for one in drawing.requests(job, model, library):  # type: ignore[arg-type]
        job.pictures.append(Picture(b"", one, Origin()))


def test_wrong_values_of_any_field_are_refused(serve_with: Callable[..., Running]) -> None:
    """By a status of the client's, and in one line; never by a failure of the server's."""
    serving = serve_with(draw=resolve_only)
    names = [*FIELDS, "batch_size", "n_iter", "enable_hr", "init_images", "override_settings"]
    names += ["alwayson_scripts", "hr_upscaler", "inpaint_full_res", "size", "n", "stream"]
    odd: list[object] = [[], {}, [[]], {"a": {}}, -5, 1e300, 10**30, "\u202e", "x" * 70_000, [None]]
    base = {"prompt": "a", "steps": 1, "enable_hr": True}
    pairs = product(names, odd)
    calls = [(path, {**base, name: value}) for name, value in pairs for path in APIS]
    for (path, values), answer in posted(serving, calls):
        assert answer.status_code in (200, 400, 404), (path, str(values)[:200], answer.text)
    assert not [note for note in serving.notes if "Traceback" in note]


def test_broken_forms_are_refused(serving: Running) -> None:
    url = f"{serving.url}/v1/images/edits"
    random = Random(1)
    kinds = [
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "multipart/form-data; boundary=",
    ]
    for kind in (*kinds, "application/json", "multipart/form-data; boundary=" + "x" * 300):
        for body in (b"", b"--x\r\n", b"--x--", b"--x\r\n\r\nabc\r\n--x--", random.randbytes(5000)):
            answer = requests.post(url, data=body, headers={"content-type": kind}, timeout=30)
            assert 400 <= answer.status_code < 500, (kind, body[:20], answer.text)
    for content in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + random.randbytes(100), b"%!PS\n"):
        answer = requests.post(url, files={"image": content}, data={"prompt": "a"}, timeout=30)
        assert answer.status_code == 400, answer.text
    many = [("image", (f"{i}.png", b"x")) for i in range(50)]
    assert requests.post(url, files=many, data={"prompt": "a"}, timeout=30).status_code == 400


def test_a_bomb_is_not_decoded(serving: Running) -> None:
    """A small file that says it has a thousand megapixels."""
    file = BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    header = b"IHDR" + struct.pack(">2I5B", 30_000, 30_000, 1, 0, 0, 0, 0)
    data = file.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header))
    bomb = base64.b64encode(data + file.getvalue()[33:] + bytes(300)).decode()
    for values in ({"init_images": [bomb]}, {"init_images": [f"data:image/png;base64,{bomb}"]}):
        answer = requests.post(serving.url + IMG2IMG, json={"prompt": "a", **values}, timeout=30)
        assert answer.status_code == 400
        assert "pixels" in answer.json()["detail"]


def test_raw_nonsense_closes_its_own_connection_only(serving: Running) -> None:
    random = Random(2)
    for head in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\0" * 100_000):
        with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as connection:
            connection.sendall(head + random.randbytes(1000) + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            received(connection)
    smuggled = (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as connection:
        connection.sendall(smuggled.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 4")
    assert is_well(serving)


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """What was opened, listed, started and connected to, in all threads."""
    events: list[str] = []
    on = True

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if on and event in WATCHED:
            events.append(f"{event} {arguments!r}")

    sys.addaudithook(note)
    yield events
    on = False


WATCHED = {
    *("open", "os.listdir", "os.scandir", "os.chdir", "subprocess.Popen", "os.exec", "os.remove"),
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "os.rename"),
    *("urllib.Request", "ctypes.dlopen", "glob.glob", "shutil.copyfile", "tempfile.mkstemp"),
}


def test_no_name_from_the_net_is_opened(
    serving: Running, serve_with: Callable[..., Running], tmp_path: Path, seen: list[str]
) -> None:
    """Neither paths nor addresses, as pictures, masks, models, LoRAs, upscalers or anything."""
    secret = tmp_path / f"{MARK}.png"
    Image.new("RGB", (64, 64)).save(secret)
    (tmp_path / f"{MARK}.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "loras").mkdir()
    library = AdapterPaths(lora_folders=(tmp_path / "loras",))
    running = serve_with(library=library, draw=resolve_only)
    stem = str(secret.with_suffix(""))
    names = [
        *(str(secret), stem, f"{stem}.safetensors", f"../{MARK}", f"../{MARK}.png", f"..\\{MARK}"),
        *(f"file://{secret}", f"file://{stem}.safetensors", f"http://127.0.0.1:1/{MARK}.png"),
        *(f"https://example.org/{MARK}", f"//127.0.0.1/share/{MARK}", rf"\\127.0.0.1\share\{MARK}"),
        *(f"~/{MARK}", f"/proc/self/root{secret}", f"{MARK}\0.png", f"./{MARK}", f"smb://h/{MARK}"),
    ]
    del seen[:]
    one = f"../{MARK}"
    list(posted(serving, [*hostile_calls(one)][-20:]))  # what is drawn after all, for good
    for number, name in enumerate(names):
        calls = [*hostile_calls(name, every_field=number % 5 == 0)]
        for (_, values), answer in posted(running, calls):
            assert answer.status_code in (400, 404) or "lora" not in str(values), answer.text
        form = {"prompt": "a", "image": name, "mask": name, "model": name}
        requests.post(f"{running.url}/v1/images/edits", files={"mask": b"x"}, data=form, timeout=30)
        requests.get(f"{running.url}/v1/models/{name}", timeout=30)
    ours = [f"('127.0.0.1', {port})" for port in (running.port, serving.port)]
    ours.append("socket.getaddrinfo ('127.0.0.1'")  # this test's own look-up of the server
    foreign = [one for one in seen if "socket" in one and not any(own in one for own in ours)]
    assert not foreign
    assert not [one for one in seen if MARK in one]
    secret.read_bytes()
    assert MARK in seen[-1]  # the hook would have seen it
    assert any(one.startswith("socket.connect") for one in seen)


def hostile_calls(name: str, every_field: bool = False) -> Iterator[Call]:
    """Calls that name something in every place where a name can stand."""
    for field, row in FIELDS.items() if every_field else ():
        plain = issubclass(row.kind, int | float)
        for value in [name] if plain else [name, [name], {"name": name}, [{"name": name}]]:
            yield GENERATIONS, {"prompt": "a", "steps": 1, field: value}
    control = {"model": name, "image": name}
    unit = {"model": name, "image": SENT}
    for values in (
        {"init_images": [name]},
        {"init_images": [name], "mask": name},
        {"override_settings": {"sd_model_checkpoint": name}},
        {"override_settings": {"sd_vae": name}},
        {"alwayson_scripts": {"controlnet": {"args": [control]}}},
        {"alwayson_scripts": {"controlnet": {"args": [unit]}}},
        {"alwayson_scripts": {"controlnet": {"args": [unit | {"module": name}]}}},
        {"init_images": [SENT], "preprocess": [f"depth:{name}"]},
        {"init_images": [SENT], "preprocess": [{"name": "depth", "model": name}]},
        {"init_images": [SENT], "controls": [f"{name}:{name}"]},
        {"init_images": [SENT], "ip_adapters": [{"model": name, "images": [name]}]},
        {"init_images": [SENT], "image": {"name": name, "hash": "0" * 64}},
        {"prompt": f"<lora:{name}:1>"},
        {"enable_hr": True, "hr_upscaler": name},
        {"enable_hr": True, "hr_checkpoint_name": name},
        {"controls": [control], "image": name},
    ):
        yield TXT2IMG, {"prompt": "a", "steps": 1, **values}
        yield IMG2IMG, {"prompt": "a", "steps": 1, **values}
    yield "/sdapi/v1/options", {"sd_model_checkpoint": name}
    yield "/sdapi/v1/png-info", {"image": name}
    yield "/sdapi/v1/extra-single-image", {"image": name, "upscaler_1": name}


def test_answers_tell_no_path(serve_with: Callable[..., Running], tmp_path: Path) -> None:
    """The operator reads it whole."""
    folder = tmp_path / "a folder" / "loras"
    folder.mkdir(parents=True)
    (folder / "style.safetensors").write_bytes(b"\xff" * 100)

    def fail(job: Job, catalog: Catalog) -> None:
        raise BadFile(f"{shown(str(catalog.library.loras['style']), 500)} is broken")

    running = serve_with(library=AdapterPaths(lora_folders=(folder,)), draw=fail)
    listed = [requests.get(f"{running.url}/sdapi/v1/{name}", timeout=10).text for name in LISTS]
    answer = requests.post(running.url + GENERATIONS, json={"prompt": "a"}, timeout=60)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == '"style.safetensors" is broken'
    for text in (answer.text, *listed):
        assert "/" not in text.replace("\\/", "/"), text
    assert str(folder) in running.notes[-1]


def test_a_failure_of_the_server_is_told_to_its_operator_alone(
    serve_with: Callable[..., Running],
) -> None:
    def fail(job: Job, catalog: Catalog) -> None:
        raise RuntimeError("/somewhere/inside\x1b")

    running = serve_with(draw=fail)
    plain = requests.post(running.url + GENERATIONS, json={"prompt": "a"}, timeout=30)
    assert plain.status_code == 500
    assert plain.json()["error"]["message"] == "internal error"
    values = {"prompt": "a", "stream": True}
    stream = requests.post(running.url + GENERATIONS, json=values, timeout=30)
    assert "event: error\n" in stream.text
    assert "inside" not in stream.text
    assert running.notes == [r"Error: RuntimeError: /somewhere/inside\x1b"] * 2
    assert is_well(running)


LISTS = ("sd-models", "loras", "upscalers", "embeddings", "options", "progress", "samplers")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "localhost@evil.example"}, 421),
        ({"Host": "studio.example:99"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "app.localhost"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://good.example"}, 200),
        ({"Host": "studio.example", "Origin": "http://studio.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
    ],
)
def test_foreign_hosts_and_pages_are_refused(
    guarded: Running, headers: dict[str, str], status: int
) -> None:
    answer = requests.get(f"{guarded.url}/v1/models", headers=headers | KEY, timeout=10)
    assert answer.status_code == status
    allowed = answer.headers.get("Access-Control-Allow-Origin")
    assert allowed == (headers["Origin"] if "good" in str(headers) else None)


KEY = {"Authorization": "Bearer open-sesame"}


@pytest.fixture(scope="module")
def guarded(sd1_folder: Path) -> Iterator[Running]:
    """A server with a key, a name and a friend."""
    access = Access(("open-sesame",), ("studio.example",), ("https://good.example",))
    running, stop = start(str(sd1_folder), access=access, draw=seed_as_picture)
    yield running
    stop()


def test_a_page_of_an_allowed_site_may_ask_first(guarded: Running) -> None:
    asked = {
        "Origin": "https://good.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = requests.options(guarded.url + GENERATIONS, headers=asked, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://good.example"


def test_without_a_key_only_health_answers(guarded: Running) -> None:
    assert requests.get(f"{guarded.url}/health", timeout=10).status_code == 200
    for path in ("/", "/metrics", "/v1/models", "/sdapi/v1/options", "/nothing"):
        answer = requests.get(guarded.url + path, timeout=10)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
    for user in ("", "anybody"):
        answer = requests.get(f"{guarded.url}/", auth=(user, "open-sesame"), timeout=10)
        assert answer.status_code == 200
    assert requests.get(f"{guarded.url}/", auth=("a", "b"), timeout=10).status_code == 401
    assert requests.post(guarded.url + TXT2IMG, json={}, timeout=10).status_code == 401


def test_metrics_are_prometheus(serving: Running) -> None:
    text = requests.get(f"{serving.url}/metrics", timeout=10).text
    rows = [line for line in text.splitlines() if not line.startswith("#")]
    values = {row.rpartition(" ")[0]: float(row.rpartition(" ")[2]) for row in rows}
    assert values["txt2img_jobs_running"] == 0
    assert values["txt2img_connections"] >= 1
    before = values["txt2img_pictures_total"]
    requests.post(serving.url + TXT2IMG, json={"prompt": "a", "steps": 1}, timeout=60)
    after = requests.get(f"{serving.url}/metrics", timeout=10).text
    assert f"txt2img_pictures_total {before + 1:g}\n" in after
    assert 'txt2img_requests_total{route="/sdapi/v1/txt2img",status="200"}' in after
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {row.partition("{")[0].split()[0] for row in rows} <= names


def test_what_is_not_there_is_told_in_each_apis_shape(serving: Running) -> None:
    assert (
        requests.get(f"{serving.url}/v1/nothing", timeout=9).json()["error"]["code"] == "not_found"
    )
    assert (
        requests.get(f"{serving.url}/sdapi/v1/nothing", timeout=9).json()["detail"] == "Not Found"
    )
    assert requests.get(serving.url + GENERATIONS, timeout=9).status_code == 405
