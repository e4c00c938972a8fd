"""Client of chat completions, OpenAI's API as ollama, llama.cpp, vLLM and LM Studio have it, too.

What comes back is bounded in time and size, redirects are not followed, and neither the address
nor the key is in a message.
"""

import asyncio
import ipaddress
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from txt2img.errors import BadRequest, EnhanceFailed
from txt2img.system.files import parse_json
from txt2img.system.text import shown

KEY = "TXT2IMG_ENHANCE_KEY"  # environment variable
SECONDS = 120.0  # a server may have to load its model first
CONNECT_SECONDS = 10.0
BYTES_MAX = 2**20
TOKENS_MAX = 1024  # some think first
SEEDS = 2**31  # servers take no larger ones


@dataclass(frozen=True)
class ChatEndpoint:
    """A server and the name of its model, URL#MODEL; the key stays out of `repr`."""

    url: str = field(repr=False)  # with /chat/completions
    name: str = ""  # of its model
    key: str = field(default="", repr=False)
    seconds: float = SECONDS

    @property
    def hash(self) -> str:
        """The hash of its model's weights, which are not known."""
        return ""

    @property
    def place(self) -> str:
        """The server for messages: scheme, host and port."""
        parts = urlsplit(self.url)
        port = "" if parts.port is None else f":{parts.port}"
        return f"{parts.scheme}://{parts.hostname}{port}"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.url).hostname or ""
        with suppress(ValueError):
            return ipaddress.ip_address(host).is_loopback
        return host == "localhost"

    def answer(self, instructions: str, prompt: str, seed: int, temperature: float) -> str:
        """The model's answer to a user who says `prompt`. EnhanceFailed."""
        import httpx

        body = {
            "model": self.name or "default",
            "messages": [
                {"role": "system", "content": instructions},
                {"role": "user", "content": prompt},
            ],
            "temperature": temperature,
            "seed": seed % SEEDS,
            "max_tokens": TOKENS_MAX,
            "stream": False,
        }
        try:
            status, content = asyncio.run(self._post(body))
        except TimeoutError as error:
            raise EnhanceFailed(f"no answer in {self.seconds:g} s from {self.place}") from error
        except httpx.ConnectError as error:
            raise EnhanceFailed(f"nothing answers at {self.place}; start the server") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            reason = self._without_key(str(error) or type(error).__name__)
            raise EnhanceFailed(f"no answer from {self.place}: {shown(reason, 120)}") from error
        return self._text(status, content)

    async def _post(self, body: dict[str, object]) -> tuple[int, bytes]:
        """Send a request; gives the status and the content of the answer. httpx.HTTPError."""
        import httpx

        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        limits = httpx.Timeout(None, connect=CONNECT_SECONDS)
        async with (
            asyncio.timeout(self.seconds),  # of all: httpx's limits are those of each read
            httpx.AsyncClient(timeout=limits, trust_env=not self.is_local) as client,
            client.stream("POST", self.url, json=body, headers=headers) as response,
        ):
            content = bytearray()
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > BYTES_MAX:
                    raise EnhanceFailed(f"the answer of {self.place} is larger than 1 MiB")
            return response.status_code, bytes(content)

    def _text(self, status: int, content: bytes) -> str:
        """The text in an answer. EnhanceFailed."""
        if status in (401, 403):  # whose texts may repeat a part of the key
            raise EnhanceFailed(f"{self.place} refuses the key (status {status}); set {KEY}")
        try:
            answer = parse_json(content.decode("utf-8"))
        except ValueError:
            answer = None
        if status != 200:
            hint = "" if self.name or status not in (400, 404) else "; name its model: URL#NAME"
            why = self._without_key(_error_in(answer))
            detail = f": {shown(why, 120)}" if why else ""
            raise EnhanceFailed(f"{self.place} answers with status {status}{detail}{hint}")
        if answer is None:
            raise EnhanceFailed(f"{self.place} answers with something other than JSON")
        text = _text_in(answer)
        if text is None:
            raise EnhanceFailed(f"the answer of {self.place} is no chat completion")
        return text

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "…") if self.key else text


def parse_endpoint(text: str, key: str = "", seconds: float = SECONDS) -> ChatEndpoint:
    """Parse URL#MODEL; the URL may end in /v1 or in /chat/completions. BadRequest."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise BadRequest(f"--enhance: no URL: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise BadRequest(f"--enhance: a key or password does not belong in a URL; set {KEY}")
    if not parts.hostname:
        raise BadRequest(f"--enhance: {shown(text)} names no server; write http://HOST:PORT/v1")
    if not key.isascii() or not key.isprintable():
        raise BadRequest("--enhance: its key must be of ASCII characters, on one line")
    path = parts.path.rstrip("/") or "/v1"
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    url = SplitResult(parts.scheme, parts.netloc, path, parts.query, "").geturl()
    return ChatEndpoint(url, parts.fragment, key, seconds)


def is_url(text: str) -> bool:
    """Whether a text is a server's address rather than a folder."""
    return text.lower().startswith(("http://", "https://"))


def _error_in(answer: object) -> str:
    """What an answer of a failure says; empty if nothing."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return said if isinstance(said, str) else ""


def _text_in(answer: object) -> str | None:
    """The text of a chat completion; None if it is none. EnhanceFailed if it is a refusal."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return None
    refusal = message.get("refusal")
    if refusal or choice.get("finish_reason") == "content_filter":
        raise EnhanceFailed("it refuses" + (f": {shown(str(refusal), 100)}" if refusal else ""))
    content = message.get("content")
    if isinstance(content, list):  # parts
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    return "" if content is None else content if isinstance(content, str) else None
