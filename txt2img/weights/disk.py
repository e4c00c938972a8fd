"""Plain files: opened warily, read as JSON warily, written whole or not at all."""

import json
import os
import secrets
import stat
from io import BufferedReader
from pathlib import Path

from txt2img.errors import BadFile, BadOutput
from txt2img.escape import shown

JSON_MAX = 16 * 2**20  # bytes
FETCH = "download the real file again"
# A pipe must not make us wait; Windows must not translate line ends.
_HOW: int = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def publish(path: Path, content: bytes, lasting: bool = True) -> None:
    """Put `content` at `path` atomically, through a new name beside it. Raises BadOutput.

    `lasting` waits until a power cut cannot undo it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if lasting:
                    os.fsync(descriptor)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        if lasting:
            _sync_folder(path.parent)
    except OSError as error:
        raise BadOutput(f"cannot write {shown(path.name)}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of at most 16 MiB. Raises BadFile."""
    with opened(path) as file:
        content = file.read(JSON_MAX + 1)
    if len(content) > JSON_MAX:
        raise BadFile(f"{path.name}: larger than {JSON_MAX:,} bytes, which no configuration is")
    value = parsed(content, path.name)
    if not isinstance(value, dict):
        raise BadFile(f"{path.name}: not a JSON object")
    return value


def parsed(content: bytes, name: str) -> object:
    """The JSON value in `content`: UTF-8, no key twice, numbers finite. Raises BadFile."""
    try:
        value: object = json.loads(
            content.decode("utf-8"), object_pairs_hook=_unlike, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, _Odd) else "broken JSON: truncated or damaged"
        raise BadFile(f"{name}: {why}; {FETCH}") from error
    return value


def opened(path: Path) -> BufferedReader:
    """A regular file, open for reading; devices, pipes and folders are refused. Raises BadFile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _HOW)
    except OSError as error:
        raise BadFile(f"cannot open {shown(path.name)}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadFile(f"{shown(path.name)} is not a regular file; give a weight file or a folder")
    return os.fdopen(descriptor, "rb")


class _Odd(ValueError):
    """JSON that is well-formed and yet not to be believed; its text says why."""


def _unlike(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _Odd("a name occurs twice")
    return names


def _no_constant(text: str) -> object:
    raise _Odd(f"a number is {text}")


def _sync_folder(folder: Path) -> None:
    """Make a rename last: without it, a power cut can undo it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
