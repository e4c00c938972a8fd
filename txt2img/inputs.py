"""Files and texts from outside, opened and parsed so that none can harm."""

import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from txt2img.errors import BadFile
from txt2img.escape import shown

# A FIFO must not block. Where a flag does not exist it is not needed.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: Path) -> BinaryIO:
    """A file open for reading; BadFile for what is missing, unreadable or not a regular file."""
    try:
        descriptor = os.open(path, FLAGS)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BadFile(f"{shown(str(path))} is not a regular file")
        return os.fdopen(descriptor, "rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadFile(f"cannot read {shown(str(path))}: {reason.lower()}") from error


def parse_json(text: str) -> object:
    """What a JSON text says; ValueError for what is malformed, too deep, doubled or not finite."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not a number")

    try:
        parsed: object = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return parsed
