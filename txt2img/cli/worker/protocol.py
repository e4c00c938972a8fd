"""How a call and a warm worker talk: a Unix socket that only this user can reach.

A caller sends {"do": "run" | "status" | "stop"}. To "run" the worker answers whether it is free:
{"go": bool, "ending": bool}. Only a caller that was told to go sends its order, and with it its
standard streams and its folder as open files: a worker that is busy, late or dead never holds them.
From then on the caller sends signals, a byte each, and the worker {"touched": true} before it first
reads the caller's input or writes its output, and {"code": N} at the end. Whoever dies is known by
the end of the stream.
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
PATH_MAX = 100  # bytes; a Unix socket's name has room for 104 to 108
NAME_BYTES = 24  # of a socket in its folder, more than enough
MESSAGE_MAX = 64 << 20  # bytes
ANSWER_SECONDS = 30.0  # for who is at the other end to answer at all
# What a process can be told at its start only: a worker that was told otherwise is another one.
AT_START = (
    *("CUDA", "DYLD_", "GOMP_", "HIP", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "MKL_"),
    *("NVIDIA_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "ROCR_", "TORCH", "TZ"),
)
_SIZE = struct.Struct("!Q")
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


class NotOurs(Exception):
    """Who sits at the other end, or owns the folder, is somebody else."""


def folder() -> Path:
    """The private folder of this user's sockets, made if there is none. NotOurs, OSError."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    path = Path(runtime, "txt2img") if os.path.isdir(runtime) else _in_temp()
    if len(os.fsencode(path)) > PATH_MAX - NAME_BYTES:
        path = _in_temp()
    if not path.exists():
        path.mkdir(mode=0o700, exist_ok=True)
    check_private(path)
    return path


def _in_temp() -> Path:
    return Path(os.environ.get("TMPDIR") or "/tmp") / f"txt2img-{os.getuid()}"


def check_private(path: Path) -> None:
    """Raise NotOurs unless a folder is this user's and nobody else can look in."""
    about = path.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise NotOurs(f"{path} is not a folder of yours alone")


def check_peer(connection: socket.socket) -> None:
    """Raise NotOurs unless this user's process is at the other end, where the system tells."""
    if not hasattr(socket, "SO_PEERCRED"):
        return  # the folder's mode has kept others out
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    if _CREDENTIALS.unpack(raw)[1] != os.getuid():
        raise NotOurs("another user's process is at the other end")


def state_of_source() -> str:
    """What changes when a file of this program does, as in an upgrade. OSError."""
    digest = hashlib.sha256(__version__.encode())
    root = Path(__file__).parent.parent.parent
    for path in sorted(root.rglob("*.py")):
        about = path.stat()
        digest.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def name_of(model: str) -> str:
    """The name of the socket for a model, of workers that are what this process is. OSError."""
    import resource

    limits = [resource.getrlimit(n) for n in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    told = sorted(pair for pair in os.environ.items() if pair[0].startswith(AT_START))
    process = [sys.executable, sys.flags.dev_mode, limits, cores, os.nice(0), told]
    text = json.dumps([model, state_of_source(), *process])
    return hashlib.sha256(text.encode()).hexdigest()[:16] + ".sock"


def connect(path: Path, seconds: float = ANSWER_SECONDS) -> socket.socket:
    """A connection to the worker at `path`. OSError if there is none, NotOurs."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(str(path))
        check_peer(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def listen(path: Path) -> socket.socket:
    """A socket at `path` that this user alone can connect to; one that was there goes. OSError."""
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
    """One message, with open files. OSError."""
    text = json.dumps(message).encode("ascii")
    data = _SIZE.pack(len(text)) + text
    # In one piece where it fits: who is interrupted must not have sent half a message.
    sent = socket.send_fds(connection, [data], list(files)) if files else 0
    if sent < len(data):  # no bytes at all are an error too when the other end is gone
        connection.sendall(data[sent:])


def receive(connection: socket.socket, files: int = 0) -> tuple[dict[str, object], list[int]]:
    """One message and the files that came with it. OSError, EOFError, ValueError."""
    came: list[int] = []
    try:
        head, came, _, _ = socket.recv_fds(connection, _SIZE.size, files)
        head += _exactly(connection, _SIZE.size - len(head))
        [size] = _SIZE.unpack(head)
        if size > MESSAGE_MAX:
            raise ValueError(f"a message of {size} bytes")
        message = json.loads(_exactly(connection, size))
        if not isinstance(message, dict) or len(came) != files:
            raise ValueError("no message")
    except BaseException:
        for file in came:
            os.close(file)
        raise
    return message, came


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("the other end is gone")
        data += part
    return bytes(data)
