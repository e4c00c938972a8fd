"""Who may ask: keys, names of this host (against DNS rebinding), and pages of other sites."""

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from txt2img.server.answers import error

OPEN_PATHS = ("/health",)  # for all, without a key


@dataclass(frozen=True)
class Access:
    """Who may ask this server."""

    keys: tuple[str, ...] = ()  # any of them; without one, everybody may
    hosts: tuple[str, ...] = ()  # names of this host besides localhost and addresses
    origins: tuple[str, ...] = ()  # of other sites whose pages may ask, as https://example.org


class Guard:
    """Refuses requests with a foreign Host, from pages of other sites, or without a key.

    A page of any site may send requests to this machine; a name of a foreign domain that leads
    here would even let it read the answers. Neither can be told by the connection.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, message = refusal
        more = {"WWW-Authenticate": 'Basic realm="txt2img", charset="UTF-8"'}
        answer = error(Request(scope), status, message, more if status == 401 else {})
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """The status and message for a request that is refused. Notes whose key it has."""
        host = headers.get("host", "")
        if not is_own_host(host, self.access.hosts):
            return 421, "this server does not go by that name; see --allow-host"
        if not is_own_page(headers, host, self.access.origins):
            return 403, "pages of other sites may not ask; see --cors-origin"
        if scope["path"] in OPEN_PATHS or not self.access.keys or scope["method"] == "OPTIONS":
            return None
        owner = matching_key(headers.get("authorization", ""), self.access.keys)
        if owner is None:
            return 401, "a key is needed: Authorization: Bearer KEY, or KEY as a password"
        scope.setdefault("state", {})["owner"] = owner
        return None


def is_own_host(host: str, allowed: Sequence[str]) -> bool:
    """Whether a Host header names this server: an address, localhost, or a name allowed."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::\d{1,5})?", host, re.ASCII)
    if match is None:
        return False
    name = match[1].strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    if name in (one.lower() for one in allowed):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_own_page(headers: Headers, host: str, allowed: Sequence[str]) -> bool:
    """Whether a request comes from this server's page, an allowed one, or no page at all."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin", "same-site") or (
            headers.get("sec-fetch-mode") == "navigate"
        )
    return origin.partition("://")[2] == host or origin in allowed


def matching_key(authorization: str, keys: Sequence[str]) -> str | None:
    """The fingerprint of the key that a header has, as Bearer or as Basic's password."""
    scheme, _, value = authorization.partition(" ")
    given = [value.strip()]
    if scheme.lower() == "basic":
        try:
            both = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            return None
        given = [both, both.partition(":")[2]]
    elif scheme.lower() != "bearer":
        return None
    found = None
    for key in keys:  # all of them, in a time that tells nothing
        for one in given:
            if hmac.compare_digest(digest(one), digest(key)):
                found = digest(key).hex()[:16]
    return found


def digest(key: str) -> bytes:
    """A key's hash."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
