"""The last command line that drew, kept for `txt2img again`."""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.system.files import read_json, user_folder, write_atomic

DRAW_NOTHING = ("--dry-run", "--help", "-h", "-help", "-?", "--version")
DROPPED = ("--seed", "--shard")  # with their values; new pictures are no part of others
SWITCHES = ("--resume",)
OUTPUT = ("-o", "--output", "--out", "--outdir", "--output-dir")


def save(arguments: Sequence[str]) -> None:
    """Keep the arguments of a line that drew pictures; a failure costs nothing."""
    if any(text in DRAW_NOTHING for text in arguments):
        return
    record = {"arguments": [*arguments], "folder": os.getcwd()}
    with suppress(OSError, ValueError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(json.dumps(record).encode("ascii"), _path(), overwrite=True, fsync=False)


def load() -> tuple[list[str], str]:
    """The arguments of the last line that drew, and the folder where it ran. BadRequest."""
    try:
        record = read_json(_path())
    except BadFile:
        raise BadRequest('nothing was drawn yet; try txt2img "red apple, 3d emoji"') from None
    arguments, folder = record.get("arguments"), record.get("folder")
    if not isinstance(arguments, list) or not all(isinstance(text, str) for text in arguments):
        raise BadRequest("what was drawn last is not known any more; type its line once more")
    return arguments, str(folder)


def with_new_seeds(arguments: Sequence[str], count: int | None) -> list[str]:
    """The line that draws such pictures with random seeds, `count` of them if that is given.

    A file that -o names, which exists now, gets the seed into its name.
    """
    changed = []
    rest = iter(arguments)
    for text in rest:
        if text == "--":
            changed += [text, *rest]
            break
        flag, equals, value = text.partition("=")
        if flag in DROPPED:
            if not equals:
                next(rest, None)
        elif text in SWITCHES:
            continue
        elif flag in OUTPUT:
            changed += [flag, _with_seed(value if equals else next(rest, ""))]
        else:
            changed.append(text)
    options = ["--seed", "-1", *([] if count is None else ["--count", str(count)])]
    place = changed.index("--") if "--" in changed else len(changed)
    return [*changed[:place], *options, *changed[place:]]


def _with_seed(output: str) -> str:
    """An output's name with {seed} in it, if it is one file's."""
    stem, suffix = os.path.splitext(output)
    is_file = bool(suffix) and not re.search(r"\{\w", output) and not os.path.isdir(output)
    return f"{stem}-{{seed}}{suffix}" if is_file else output


def _path() -> Path:
    return user_folder("STATE") / "last.json"
