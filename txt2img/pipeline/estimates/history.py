"""Speed and memory of past runs, kept in the user's state folder for a dry run's estimates.

The file holds times and bytes by family, device and dtype; no prompt, no path, no name.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from pathlib import Path

from txt2img.errors import BadFile
from txt2img.request import Request
from txt2img.request.compat import Rules, rules, steps_of
from txt2img.request.hires import drawn_size, second_pass, second_rules, without_hires
from txt2img.request.prompt_syntax import split_and
from txt2img.system import files
from txt2img.system.files import user_folder

FORMAT = 2
KEYS_MAX = 256  # the oldest are dropped
NEWEST = 0.3  # the weight of a new run against all before it
CACHED_COST = 0.1  # of an evaluation whose deep features come from DeepCache
CONTROL_COST = 0.4  # of an evaluation, for a ControlNet's
MEGA = 1e6


@dataclass(frozen=True)
class Speed:
    """The mean speed and memory of a family's runs on a device."""

    per_evaluation: float  # seconds of one network evaluation, a megapixel
    other: float  # seconds for all else, a megapixel
    load: float = 0.0  # seconds until the model was loaded
    base: float = 0.0  # bytes of memory beyond the weights, once it was
    memory: float = 0.0  # bytes more while drawing, a megapixel of a batch
    runs: int = 1


def key(
    family: str,
    parameters: int,
    device: str,
    dtype: str,
    merging: float = 0.0,
    mode: str = "none",
) -> str:
    """The key of a speed: family, number of parameters, device, dtype.

    Token merging is part of it, since it saves another share of each network, and how a model is
    offloaded.
    """
    merged = f" | merging {merging:g}" if merging else ""
    offloaded = "" if mode == "none" else f" | {mode}"
    return f"{family}, {parameters / MEGA:.1f}M | {device} | {dtype}{merged}{offloaded}"


def evaluations(request: Request) -> float:
    """Network evaluations of a filled request, one a prompt; DeepCache's count as fractions."""
    return sum(costs(request))


def costs(request: Request) -> list[float]:
    """The evaluations of each step of all passes, those of a smaller one as fractions."""
    if not request.has_hires:
        return _costs_of_pass(request, rules(request))
    share = megapixels(without_hires(request)) / megapixels(request)
    first = _costs_of_pass(without_hires(request), rules(request))
    second = _costs_of_pass(second_pass(request), second_rules(request))
    return [*(share * cost for cost in first), *second]


def _costs_of_pass(request: Request, program: Rules) -> list[float]:
    """The evaluations of each step, as if the steps were evenly spaced."""
    steps, interval = steps_of(request, program).drawn, request.cfg_interval
    per_step = request.sampler.evaluations if request.sampler else 1
    prompts = len(split_and(request.prompt)) if program.prompt_editing else 1
    result, rows_before, since_full = [], 0, 0
    for step in range(steps):
        guided = request.cfg != 1 and (interval is None or (step + 0.5) / steps in interval)
        rows = prompts + 1 if guided or prompts > 1 else 1
        since_full = since_full + 1 if rows == rows_before else 0  # the cache is of as many rows
        rows_before = rows
        count = per_step if step < steps - 1 else 1
        full = count if request.reuse == 1 else since_full % request.reuse == 0
        on = sum(one.weight > 0 and one.interval.has_step(step, steps) for one in request.controls)
        weaker = count if request.pag or request.seg else 0  # one pass more, never cached
        drawn = rows * (full * (1 + CONTROL_COST * on) + CACHED_COST * (count - full))
        result.append(drawn + weaker)
    return result


def megapixels(request: Request) -> float:
    """The size of a filled request's image, as it is drawn."""
    width, height = drawn_size(request) if request.has_hires else (request.width, request.height)
    return (width or 0) * (height or 0) / MEGA


def seconds(speed: Speed, request: Request) -> float:
    """Estimated seconds for one image, without loading the model."""
    return megapixels(request) * (speed.per_evaluation * evaluations(request) + speed.other)


def read() -> dict[str, Speed]:
    """The speeds by key; empty if there is no file, or a broken one."""
    with suppress(BadFile, ValueError, TypeError):
        content = files.read_json(path())
        rows = content.get("speeds")
        if content.get("version") == FORMAT and isinstance(rows, dict):
            return {name: _speed(row) for name, row in rows.items()}
    return {}


def record(name: str, new: Speed) -> None:
    """Add a run's speed to the file; one that cannot be written only costs estimates."""
    with suppress(OSError):
        path().parent.mkdir(parents=True, exist_ok=True)
        speeds = read()
        old = speeds.pop(name, None)
        speeds[name] = new if old is None else mixed(old, new)
        rows = {key: asdict(speed) for key, speed in list(speeds.items())[-KEYS_MAX:]}
        data = json.dumps({"version": FORMAT, "speeds": rows}, indent=1).encode()
        files.write_atomic(data, path(), overwrite=True, fsync=False)


def mixed(old: Speed, new: Speed) -> Speed:
    """The running mean, which favours new runs over old ones."""
    share = max(NEWEST, 1 / (old.runs + 1))
    # A zero was not measured, and changes nothing.
    values = {
        f.name: (1 - share) * was + share * now if was and now else was or now
        for f in fields(Speed)
        if f.name != "runs"
        for was, now in [(getattr(old, f.name), getattr(new, f.name))]
    }
    return replace(old, runs=old.runs + 1, **values)


def path() -> Path:
    """The file's path."""
    return user_folder("STATE") / "speeds.json"


def _speed(row: object) -> Speed:
    """A speed from JSON. ValueError, TypeError."""
    if not isinstance(row, Mapping):
        raise ValueError("it is not an object")
    speed = Speed(**row)
    if not all(isfinite(value) and value >= 0 for value in asdict(speed).values()):
        raise ValueError("a negative or infinite speed")
    return speed
