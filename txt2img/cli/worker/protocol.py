"""Protocol between client and worker, over a Unix socket that only this user can open.

The client sends {"do": "run" | "status" | "stop"}. The worker answers "run" with
{"go": bool, "ending": bool}. If "go" is true, the client sends its job, with its standard streams
and its current folder as open files; a worker that is busy, late or dead never receives them.
From then on the client sends signals, one byte each. The worker sends {"touched": true} before it
first uses the client's standard input or output, and {"code": N} at the end. The end of the stream
means that the other side has died.
"""

import hashlib
import json
import os
import socket
import stat
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from txt2img.system.version import __version__

HAS_SOCKETS = hasattr(socket, "AF_UNIX") and hasattr(socket, "send_fds")
PATH_MAX = 100  # bytes; systems allow 104 to 108 for the path of a Unix socket
NAME_BYTES = 24  # at most, of the socket's name in its folder
MESSAGE_MAX = 64 << 20  # bytes
ANSWER_SECONDS = 30.0  # timeout for each answer
# Variables read only at start-up. A worker started with other values cannot serve this call.
STARTUP_VARIABLES = (
    *("CUDA", "DYLD_", "GOMP_", "HIP", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_"),
    *("NVIDIA_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "ROCR_", "TORCH", "TZ"),
)
_SIZE = struct.Struct("!Q")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class WrongOwner(Exception):
    """The socket or its folder belongs to another user, or is open to others."""


def folder() -> Path:
    """This user's private folder of sockets, created if missing. WrongOwner, OSError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    path = Path(runtime, "txt2img") if os.path.isdir(runtime) else _temp_folder()
    if len(os.fsencode(path)) > PATH_MAX - NAME_BYTES:
        path = _temp_folder()
    if not path.exists():
        path.mkdir(mode=0o700, exist_ok=True)
    check_private(path)
    return path


def _temp_folder() -> Path:
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"txt2img-{os.getuid()}"


def check_private(path: Path) -> None:
    """Raise WrongOwner unless a folder is this user's and closed to all others."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise WrongOwner(f"{path} is not a folder of yours alone")


def check_peer(connection: socket.socket) -> None:
    """Raise WrongOwner unless the other end is this user's process, where the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return  # the folder's mode keeps others out
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(raw)[1] != os.getuid():
        raise WrongOwner("another user's process is at the other end")


def code_fingerprint() -> str:
    """A hash of this package's version and source files, which an upgrade changes. OSError."""
    digest = hashlib.sha256(__version__.encode())
    root = Path(__file__).parent.parent.parent
    for path in sorted(root.rglob("*.py")):
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def socket_name(model: str) -> str:
    """The socket's name for a model and for processes like this one. OSError."""
    import resource

    limits = [resource.getrlimit(n) for n in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    environment = sorted(p for p in os.environ.items() if p[0].startswith(STARTUP_VARIABLES))
    process = [sys.executable, sys.flags.dev_mode, limits, cores, os.nice(0), environment]
    text = json.dumps([model, code_fingerprint(), *process])
    return hashlib.sha256(text.encode()).hexdigest()[:16] + ".sock"


def connect(path: Path) -> socket.socket:
    """Connect to the worker at `path`. OSError if there is none, WrongOwner."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(str(path))
        check_peer(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def listen(path: Path) -> socket.socket:
    """Listen at `path`, for this user alone; replaces a socket that is there. OSError."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        server.bind(str(path))
    finally:
        os.umask(mask)
    server.listen(64)
    return server


def send(
    connection: socket.socket, message: Mapping[str, object], files: Sequence[int] = ()
) -> None:
    """Send a message, with open files. OSError."""
    text = json.dumps(message).encode("ascii")
    data = _SIZE.pack(len(text)) + text
    # In one piece where it fits, so that an interrupted process has not sent half a message.
    sent = socket.send_fds(connection, [data], list(files)) if files else 0
    if sent < len(data):
        connection.sendall(data[sent:])


def receive(connection: socket.socket, files: int = 0) -> tuple[dict[str, object], list[int]]:
    """Receive a message and `files` open files. OSError, EOFError, ValueError."""
    received: list[int] = []
    try:
        head, received, _, _ = socket.recv_fds(connection, _SIZE.size, files)
        head += _receive_exactly(connection, _SIZE.size - len(head))
        [size] = _SIZE.unpack(head)
        if size > MESSAGE_MAX:
            raise ValueError(f"a message of {size} bytes")
        message = json.loads(_receive_exactly(connection, size))
        if not isinstance(message, dict) or len(received) != files:
            raise ValueError("not a message")
    except BaseException:
        for file in received:
            os.close(file)
        raise
    return message, received


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("the other end is closed")
        data += part
    return bytes(data)
