"""txt2img worker: look after the processes that --warm leaves behind."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.names import Command
from txt2img.cli.options.types import Json
from txt2img.cli.terminal.console import log, print_json, print_row
from txt2img.cli.worker import protocol
from txt2img.errors import BadRequest
from txt2img.system.text import shown

EPILOG = """
\b
Examples:
  txt2img worker status
  txt2img worker stop
"""
What = Annotated[str, typer.Argument(metavar="status|stop", show_default=False)]


def worker(what: What, json: Json = False) -> None:
    """Say which warm workers there are, or stop them when what they draw is done."""
    if what not in ("status", "stop"):
        raise BadRequest(f"no worker command {shown(what)}; choose status or stop")
    states = [state for path in sockets() if (state := ask(path, what))]
    for state in states:
        if json:
            print_json(state)
            continue
        busy, left = state.get("busy"), state.get("idle_seconds_left")
        if what == "stop":
            fate = "stops when its pictures are done" if busy else "stopped"
        else:
            fate = "drawing" if busy else f"idle, ends in {left} s"
        print_row(
            f"pid {state.get('pid')}", state.get("model"), f"{state.get('calls')} calls", fate
        )
    if not states and not json:
        log("There is no worker.")


def sockets() -> list[Path]:
    """The sockets of this user's workers. BadRequest where there can be none."""
    if not protocol.HAS_SOCKETS:
        raise BadRequest("this system has no Unix sockets for a warm worker")
    try:
        return sorted(protocol.folder().glob("*.sock"))
    except protocol.WrongOwner as error:
        raise BadRequest(f"{error}; remove it, or set XDG_RUNTIME_DIR") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadRequest(f"no folder for sockets: {reason}; set XDG_RUNTIME_DIR") from None


def ask(path: Path, what: str) -> dict[str, object] | None:
    """What a worker says of itself; None, and its socket is removed, if it is dead.

    One that is told to stop and has nothing to do has ended when this returns.
    """
    try:
        with protocol.connect(path) as connection:
            protocol.send(connection, {"do": what})
            state, _ = protocol.receive(connection)
            if what == "stop" and not state.get("busy"):
                with suppress(OSError):
                    connection.recv(1)  # nothing: the end of its process is that of the stream
            return state
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return None
    except (OSError, EOFError, ValueError, protocol.WrongOwner):
        return None


COMMAND: Command = worker, EPILOG
