"""--dry-run: all that a run would do, said without torch and without reading a weight."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.cli.provenance import changed
from txt2img.cli.requests import Wish
from txt2img.cli.run_options import SOME_FAILED, RunSettings
from txt2img.cli.terminal.console import print_json, print_row
from txt2img.cli.terminal.results import print_error, request_summary
from txt2img.cli.warning_log import Care
from txt2img.errors import BadRequest
from txt2img.images.image_file import Origin
from txt2img.images.resume import Item, ResumeIndex, items
from txt2img.request.request import Request
from txt2img.system.device_names import guess_device
from txt2img.system.text import format_size

if TYPE_CHECKING:
    from txt2img.pipeline.estimates.forecast import Forecast


def rehearse(wish: Wish, order: RunSettings) -> int:
    """Say what would be drawn, of which name and how; gives the exit code. Raises as drawing."""
    from txt2img.pipeline.estimates.forecast import forecast_for

    order.target.check_free()
    how = order.precision
    forecast = forecast_for(wish.model, wish.library, how.device, how.dtype, how.low_memory)
    care = Care(order.batching.strict, forecast.tokenizers)
    if forecast.hash:
        wish.warnings += changed(wish.made_by, Origin(forecast.plan.name, forecast.hash))
    total: float | None = 0.0
    most = last = None
    told = set[Path]()  # a name that is taken moves those of the pictures after it too
    for item in to_draw(wish, forecast, order):
        try:
            lines, counts = care.look(item)
        except BadRequest as unreadable:
            if not wish.lenient:
                raise
            wish.errors["prompt", item.index] = unreadable
            continue
        path = order.target.free(item.name, item.number, told)
        told.add(path)
        seconds = forecast.seconds(item.request)
        total = None if total is None or seconds is None else total + seconds
        most = max(most or 0, forecast.memory(item.request, order.batch_size or 1))
        last = item.request
        if order.json:
            said = {"tokens": counts, "warnings": lines, **planned(forecast, item, order)}
            row = {"path": str(path), "index": item.index} | ({"id": item.id} if item.id else {})
            print_json({**row, **request_summary(item.request), **said})
        else:
            print_row(path, f"seed {item.request.seed}", item.request.prompt)
    if last is not None:
        for line in summary(forecast, last, care.pictures, total, most or 0):
            order.note(line)
    care.settle(wish.warnings, order.note, wish.remarks)
    for error in wish.failures():
        print_error(error, order.json)
    return SOME_FAILED if wish.failures() else 0


def to_draw(wish: Wish, forecast: "Forecast", order: RunSettings) -> Iterator[Item]:
    """The pictures of this part of a batch, with --resume those that are not there yet.

    They have ids where these are of use, and the model's hash is known. BadRequest.
    """
    resume = order.batching.resume and order.target.folder.is_dir()
    known = (forecast.hash or None) if resume or order.json else None
    batch = order.batching.shard_items(items(pictures(wish, forecast), order.target, known))
    if not resume or known is None:
        if resume:
            wish.remarks.append("this model was never loaded here: what is there is not told")
        yield from batch
        return
    total = there = 0
    with ResumeIndex(order.target) as ledger:
        for item in batch:
            total += 1
            if ledger.done(item):
                there += 1
            else:
                yield item
    if there:
        wish.remarks.append(f"{there} of {total} pictures are there already")


def pictures(wish: Wish, forecast: "Forecast") -> Iterator[Request]:
    """Each picture's request, filled. BadRequest, unless such are to be passed over."""
    for number, request in enumerate(wish.pictures()):
        try:
            yield forecast.filled(request)
        except BadRequest as error:
            if not wish.lenient:
                raise
            wish.errors["forecast", number] = error


def planned(forecast: "Forecast", item: Item, order: RunSettings) -> dict[str, object]:
    """What a picture would be drawn with, as part of its record."""
    request, seconds = item.request, forecast.seconds(item.request)
    return {
        "model": forecast.plan.name,
        "model_file": str(forecast.path),
        "hash": forecast.hash or None,
        "family": forecast.plan.family.name,
        "prediction": forecast.plan.family.prediction,
        "device": forecast.device,
        "dtype": forecast.dtype,
        "compat": request.compat,
        "clip_skip": request.clip_skip,
        "loras": [lora.name for lora in request.loras],
        "embeddings": [word.token for word in request.embeddings],
        "seconds": None if seconds is None else round(seconds, 3),
        "memory": forecast.memory(request, order.batch_size or 1),
    }


def summary(
    forecast: "Forecast", request: Request, count: int, seconds: float | None, memory: int
) -> Iterator[str]:
    """What a person wants to know before a run: the model, the kind of picture, time and memory."""
    plan = forecast.plan
    known = f", hash {forecast.hash}" if forecast.hash else ""
    seen = forecast.device in ("cpu", guess_device(None))
    where = f"{forecast.device}{'' if seen else ', which is not seen on this machine'}"
    yield f"{plan.name}: {plan.family.name}{known}; {forecast.dtype} on {where}"
    shape = f"{request.width}x{request.height} pixels, {request.steps} steps of {request.sampler}"
    what = "1 picture" if count == 1 else f"{count:,} pictures, the last"
    yield f"{what} of {shape}, schedule {request.schedule}, cfg {request.cfg:g}"
    speed = forecast.speed(request)
    if seconds is None or speed is None:
        unknown = "time unknown, for nothing like it was drawn yet"
        yield f"at least {format_size(memory)} of memory; {unknown}"
        return
    load = f" and {duration(speed.load)} to load" if speed.load else ""
    runs = "the last run" if speed.runs == 1 else f"{speed.runs:,} runs"
    yield f"about {duration(seconds)}{load}, and {format_size(memory)} of memory, judged by {runs}"


def duration(seconds: float) -> str:
    """A time in the two units that say it best."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
