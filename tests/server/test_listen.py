"""How the server ends: what was begun is answered, what waits is told, and twice is at once."""

import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.server.conftest import Running, start
from txt2img.server.catalog import Catalog
from txt2img.server.jobs import Job

PATH = "/sdapi/v1/txt2img"


def draw_until(free: threading.Event) -> Callable[[Job, Catalog], None]:
    def draw(job: Job, catalog: Catalog) -> None:
        while not (free.is_set() or job.stop.is_set()):
            time.sleep(0.01)

    return draw


def ask(running: Running, statuses: list[int]) -> None:
    answer = requests.post(running.url + PATH, json={"prompt": "a"}, timeout=60)
    statuses.append(answer.status_code)


@pytest.mark.parametrize(("signals", "statuses"), [(1, [200, 503]), (2, [503, 503])])
def test_the_first_signal_waits_for_the_picture_the_second_does_not(
    sd1_folder: Path, signals: int, statuses: list[int]
) -> None:
    free, answered = threading.Event(), list[int]()
    running, stop = start(str(sd1_folder), draw=draw_until(free))
    clients = [threading.Thread(target=ask, args=(running, answered)) for _ in range(2)]
    for number, client in enumerate(clients, 1):
        client.start()
        while len(running.service.queue.jobs) < number:
            time.sleep(0.01)
    for _ in range(signals):
        running.server.handle_exit(signal.SIGTERM, None)
    if signals == 1:
        time.sleep(0.3)
        assert not answered
        free.set()
    for client in clients:
        client.join(timeout=30)
    stop()
    assert sorted(answered) == statuses
    assert running.server.signals == signals


def test_answers_are_sent_at_once(sd1_folder: Path) -> None:
    """Without Nagle's algorithm, which makes an answer's body wait."""
    running, stop = start(str(sd1_folder), draw=draw_until(threading.Event()))
    with socket.create_connection(("127.0.0.1", running.port)):
        while not running.connections.open:
            time.sleep(0.01)
        [connection] = running.connections.open.values()
        own = connection.transport.get_extra_info("socket")
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    stop()
