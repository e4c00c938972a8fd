"""Options for the server: where it listens, who may ask, and how much waits."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options.types import integer, positive
from txt2img.errors import BadFile, BadRequest
from txt2img.system.files import read_bounded
from txt2img.system.text import shown

KEYS_MAX = 1 << 20  # bytes of the file
KEY_MIN = 8  # characters
PORTS = range(65_536)
PORT = 7860  # A1111's
QUEUE = 64


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens, and whom it answers."""

    section: ClassVar = "Server"

    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is all of them."
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            parser=integer,
            help=f"Port to listen on (default: {PORT}); 0 is any free one.",
        ),
    ] = None
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="Answer only who sends one of the keys in a file, one a line: as OpenAI's API "
            "key, or as the password of A1111's API and of the page.",
        ),
    ] = None
    queue: Annotated[
        int | None,
        typer.Option(
            "--queue",
            metavar="N",
            parser=positive,
            help=f"Requests that may wait (default: {QUEUE}); more get 429.",
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A name by which clients call this host, besides localhost and addresses. "
            "Repeatable.",
        ),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="A site whose pages may ask, as https://example.org. Repeatable.",
        ),
    ] = None
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON record per request to standard output.")
    ] = False

    def check(self) -> None:
        """Raise BadRequest for values that cannot be."""
        if self.port is not None and self.port not in PORTS:
            raise BadRequest(f"--port must be 0 … {PORTS[-1]:,}, got {self.port:,}")
        for origin in self.cors_origin or ():
            if "://" not in origin or origin.endswith("/") or "*" in origin:
                raise BadRequest(
                    f"--cors-origin {shown(origin)}: name one site without a path, as "
                    "https://example.org"
                )

    def keys(self) -> tuple[str, ...]:
        """The keys of --api-key-file. BadFile."""
        if self.api_key_file is None:
            return ()
        path = Path(os.path.expanduser(self.api_key_file))
        try:
            lines = read_bounded(path, KEYS_MAX).decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise BadFile(f"{shown(path)} is not UTF-8 text") from None
        keys = tuple(line.strip() for line in lines if line.strip() and line[0] != "#")
        if not keys or any(len(key) < KEY_MIN for key in keys):
            raise BadFile(
                f"{shown(path)} must have a key of {KEY_MIN} characters or more in each line"
            )
        return keys
