"""A server of chat completions: what is sent, and that whatever it answers is told in a line."""

import json
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("httpx")

from tests.support.chat_server import ChatServer, chat_server, dead_url
from txt2img.errors import BadRequest, EnhanceFailed
from txt2img.system.chat_endpoint import parse_endpoint

KEY = "sk-very-secret"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A server that answers politely until a test changes that."""
    with chat_server() as running:
        yield running


def ask(server: ChatServer, seconds: float = 10.0, name: str = "m") -> str:
    """Ask a server; gives the answer."""
    endpoint = parse_endpoint(f"{server.url}#{name}", KEY, seconds)
    return endpoint.answer("be brief", "a cat", 2**40 + 5, 0.5)


def test_a_chat_is_asked_for_and_its_text_comes_back(server: ChatServer) -> None:
    assert ask(server) == "a fine picture of a cat"
    [body] = server.asked
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"]
    assert body["model"] == "m" and body["temperature"] == 0.5 and body["seed"] == 5
    assert body["stream"] is False and body["max_tokens"] > 0
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_addresses_may_be_short(server: ChatServer, end: str) -> None:
    base = server.url.removesuffix("/v1")
    parse_endpoint(f"{base}{end}").answer("", "a cat", 0, 0)
    assert server.paths == ["/v1/chat/completions"]
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"<html>Busy</html>", "something other than JSON"),
        (b"", "something other than JSON"),
        (b"\xff\xfe{", "something other than JSON"),
        (b"[" * 100_000, "something other than JSON"),
        (b"[]", "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": "x"}]}', "no chat completion"),
        (b'{"choices": [{"message": {"content": 5}}]}', "no chat completion"),
        (b'{"choices": [{"message": {"refusal": "no \\u001b[31m"}}]}', r'refuses: "no \\x1b'),
        (b'{"choices": [{"message": {}, "finish_reason": "content_filter"}]}', "refuses"),
    ],
)
def test_what_is_no_answer_is_told(server: ChatServer, raw: bytes, message: str) -> None:
    server.raw = raw
    with pytest.raises(EnhanceFailed, match=message) as error:
        ask(server)
    assert "\n" not in str(error.value)


def test_an_answer_in_parts_is_joined(server: ChatServer) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "cat"}]
    server.raw = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    assert ask(server) == "a cat"


@pytest.mark.parametrize("size", [10 * 2**20, 0])
def test_a_huge_answer_is_not_read_to_its_end(server: ChatServer, size: int) -> None:
    server.raw, server.endless = b"x" * (size or 2**16), not size
    with pytest.raises(EnhanceFailed, match="larger than 1 MiB"):
        ask(server)


def test_a_server_that_drips_is_left_in_time(server: ChatServer) -> None:
    server.raw, server.pause = b" " * 200, 0.05  # every read succeeds in no time
    began = time.monotonic()
    with pytest.raises(EnhanceFailed, match=r"no answer in 0\.4 s"):
        ask(server, 0.4)
    assert time.monotonic() - began < 5


def test_nobody_there_is_told() -> None:
    with pytest.raises(EnhanceFailed, match="nothing answers at http://127"):
        parse_endpoint(dead_url()).answer("", "a cat", 0, 0)


@pytest.mark.parametrize("status", [401, 403])
def test_the_key_is_in_no_message(server: ChatServer, status: int) -> None:
    server.status, server.raw = status, json.dumps({"error": {"message": f"bad {KEY}"}}).encode()
    with pytest.raises(EnhanceFailed, match="refuses the key") as error:
        ask(server)
    assert "secret" not in str(error.value)
    server.status = 500
    with pytest.raises(EnhanceFailed, match="status 500") as error:
        ask(server)
    assert "secret" not in str(error.value)
    assert "secret" not in repr(parse_endpoint("http://h/v1?api-key=secret", KEY))


def test_a_model_that_must_be_named_is_asked_for(server: ChatServer) -> None:
    server.status, server.raw = 404, b'{"error": {"message": "model \\"default\\" not found"}}'
    with pytest.raises(EnhanceFailed, match=r"not found.*name its model: URL#NAME"):
        ask(server, name="")


def test_no_other_address_gets_the_key(server: ChatServer) -> None:
    with chat_server() as other:
        server.status = 307
        server.raw = b""
        server.location = f"{other.url}/chat/completions"
        with pytest.raises(EnhanceFailed, match="status 307"):
            ask(server)
        assert not other.asked


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:secret@host/v1", "does not belong in a URL"),
        ("http://", "names no server"),
        ("http://host:99999/", "no URL"),
        ("http://[::1/v1", "no URL"),
    ],
)
def test_addresses_that_cannot_be_are_refused(url: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as error:
        parse_endpoint(url)
    assert "secret" not in str(error.value)


def test_a_key_of_two_lines_is_refused() -> None:
    with pytest.raises(BadRequest, match="on one line"):
        parse_endpoint("http://host", "a\nb")
