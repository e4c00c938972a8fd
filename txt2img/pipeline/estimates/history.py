"""How long past runs took, kept in the user's state folder: what a dry run's estimates are from.

The file holds times and bytes by family, device and precision; no prompt, no path, no name.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path

from txt2img.errors import BadFile
from txt2img.request import Request
from txt2img.request.compat import rules
from txt2img.request.prompt_syntax import split_and
from txt2img.system import files

FORMAT = 2
KEYS_MAX = 256  # the oldest are forgotten
NEWEST = 0.3  # how much a new run counts against all before it
CACHED_COST = 0.1  # of a look's work is left where a network's deep layers are not computed anew
MEGA = 1e6


@dataclass(frozen=True)
class Speed:
    """What runs of a family on a device took."""

    per_evaluation: float  # seconds for a look of the network at a megapixel
    other: float  # seconds for all else of a picture, a megapixel
    load: float = 0.0  # seconds until the model was loaded
    base: float = 0.0  # bytes of memory beside the weights, once it was
    memory: float = 0.0  # bytes more while drawing, a megapixel of a batch
    runs: int = 1


def key(family: str, parameters: int, device: str, dtype: str, merging: float = 0.0) -> str:
    """What speeds are kept by: a family, a network's number of weights, where it computes.

    And what part of its tokens are merged: what that saves is another part of each network.
    """
    merged = f" | merging {merging:g}" if merging else ""
    return f"{family}, {parameters / MEGA:.1f}M | {device} | {dtype}{merged}"


def evaluations(request: Request) -> float:
    """How many times a network looks at a filled request's picture, each text counted.

    A look at what was kept of another counts as a part of one.
    """
    return sum(costs(request))


def costs(request: Request) -> list[float]:
    """The looks of each step of a filled request, steps taken as evenly spread over the way."""
    steps, way = request.steps or 1, request.cfg_interval
    several = request.sampler.evaluations if request.sampler else 1
    texts = len(split_and(request.prompt)) if rules(request).prompt_editing else 1
    found, before, since = [], 0, 0
    for step in range(steps):
        guided = request.cfg != 1 and (way is None or (step + 0.5) / steps in way)
        rows = texts + 1 if guided or texts > 1 else 1
        since = since + 1 if rows == before else 0  # what is kept is of so many texts
        before = rows
        count = several if step < steps - 1 else 1
        whole = count if request.reuse == 1 else since % request.reuse == 0
        found.append(rows * (whole + CACHED_COST * (count - whole)))
    return found


def megapixels(request: Request) -> float:
    """The size of a filled request's picture."""
    return (request.width or 0) * (request.height or 0) / MEGA


def seconds(speed: Speed, request: Request) -> float:
    """How long a picture should take, the loading of the model left out."""
    return megapixels(request) * (speed.per_evaluation * evaluations(request) + speed.other)


def read() -> dict[str, Speed]:
    """The speeds by key; empty where there is no file, or one that cannot be believed."""
    with suppress(BadFile, ValueError, TypeError):
        said = files.read_json(path())
        rows = said.get("speeds")
        if said.get("version") == FORMAT and isinstance(rows, dict):
            return {name: _speed(row) for name, row in rows.items()}
    return {}


def record(name: str, new: Speed) -> None:
    """Mix a run's speed into what is kept; a state that cannot be written only costs estimates."""
    with suppress(OSError):
        path().parent.mkdir(parents=True, exist_ok=True)
        kept = read()
        old = kept.pop(name, None)
        kept[name] = new if old is None else mixed(old, new)
        rows = {key: asdict(speed) for key, speed in list(kept.items())[-KEYS_MAX:]}
        data = json.dumps({"version": FORMAT, "speeds": rows}, indent=1).encode()
        files.write_atomic(data, path(), overwrite=True, fsync=False)


def mixed(old: Speed, new: Speed) -> Speed:
    """The mean of old runs and a new one, which counts more than each of many before it."""
    share = max(NEWEST, 1 / (old.runs + 1))
    # What a run did not measure it leaves as it was.
    values = {
        f.name: (1 - share) * was + share * now if was and now else was or now
        for f in fields(Speed)
        if f.name != "runs"
        for was, now in [(getattr(old, f.name), getattr(new, f.name))]
    }
    return replace(old, runs=old.runs + 1, **values)


def path() -> Path:
    """Where the file is, or will be."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "txt2img" / "speeds.json"


def _speed(row: object) -> Speed:
    """ValueError, TypeError for what is none."""
    if not isinstance(row, Mapping):
        raise ValueError("it is not an object")
    made = Speed(**row)
    if not all(isfinite(value) and value >= 0 for value in asdict(made).values()):
        raise ValueError("a speed that cannot be")
    return made
