"""txt2img worker: list and stop the processes of --keep-alive."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from txt2img.cli.options.completion import choices
from txt2img.cli.registry import Command
from txt2img.cli.terminal.console import log, print_json, print_table
from txt2img.cli.worker import protocol
from txt2img.errors import BadRequest
from txt2img.system.files import reason
from txt2img.system.text import shown

EPILOG = """
\b
Examples:
  txt2img worker status
  txt2img worker stop
"""
SCHEMA = 1  # the version of --json records; raised when a key changes its meaning
Json = Annotated[bool, typer.Option("--json", help="Print one JSON record per worker.")]
Action = Annotated[
    str,
    typer.Argument(
        metavar="status|stop", show_default=False, autocompletion=choices("status|stop")
    ),
]


def worker(action: Action, json: Json = False) -> None:
    """List the running workers, or stop them after their current pictures."""
    if action not in ("status", "stop"):
        raise BadRequest(f"no worker command {shown(action)}; choose status or stop")
    states = [state for path in sockets() if (state := ask(path, action))]
    rows = []
    for state in states:
        if json:
            print_json({"schema": SCHEMA, **state})
            continue
        busy, left = state.get("busy"), state.get("idle_seconds_left")
        if action == "stop":
            status = "stops after its current pictures" if busy else "stopped"
        else:
            status = "drawing" if busy else f"idle, ends in {left} s"
        rows.append((state.get("pid"), state.get("model"), state.get("calls"), status))
    print_table(("PID", "MODEL", "CALLS", "STATUS"), rows)
    if not states and not json:
        log("No worker is running.")


def sockets() -> list[Path]:
    """The sockets of this user's workers. BadRequest on systems without them."""
    if not protocol.HAS_SOCKETS:
        raise BadRequest("this system has no Unix sockets for a worker")
    try:
        return sorted(protocol.folder().glob("*.sock"))
    except protocol.WrongOwner as error:
        raise BadRequest(f"{error}; remove it, or set XDG_RUNTIME_DIR") from None
    except OSError as error:
        raise BadRequest(f"no folder for sockets: {reason(error)}; set XDG_RUNTIME_DIR") from None


def ask(path: Path, action: str) -> dict[str, object] | None:
    """A worker's state; None if it is dead, in which case its socket is removed.

    With "stop", waits for the end of a worker that is idle.
    """
    try:
        with protocol.connect(path) as connection:
            protocol.send(connection, {"do": action})
            state, _ = protocol.receive(connection)
            if action == "stop" and not state.get("busy"):
                with suppress(OSError):
                    connection.recv(1)  # returns at the end of the stream, when the process ends
            return state
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return None
    except (OSError, EOFError, ValueError, protocol.WrongOwner):
        return None


COMMAND: Command = worker, EPILOG
