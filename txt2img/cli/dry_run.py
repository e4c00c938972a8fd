"""--dry-run: names, seeds, warnings and cost of a run, without torch and without weights."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.cli.options.device import DeviceOptions
from txt2img.cli.provenance import differences
from txt2img.cli.requests import Batch
from txt2img.cli.run_options import SOME_FAILED, RunSettings
from txt2img.cli.terminal.console import print_json, print_row
from txt2img.cli.terminal.results import print_error, request_summary
from txt2img.cli.warning_log import WarningLog
from txt2img.errors import BadRequest
from txt2img.images.formats import Format
from txt2img.images.image_file import check_record_fits
from txt2img.images.output import described
from txt2img.images.record import Origin
from txt2img.images.resume import Item, ResumeIndex, items
from txt2img.request.compat import rules, steps_of
from txt2img.request.fields import FIELDS
from txt2img.request.hires import drawn_size, second_steps, upscaler_of
from txt2img.request.request import Request
from txt2img.system.device_names import guess_device
from txt2img.system.text import format_size

if TYPE_CHECKING:
    from txt2img.pipeline.estimates.forecast import Forecast


def dry_run(batch: Batch, settings: RunSettings) -> int:
    """Print each picture that would be drawn. Returns the exit code, raises what drawing would."""
    settings.target.check_name_free()
    forecast = forecast_of(batch, settings.device)
    if forecast.origin is not None:
        batch.warnings += differences(batch.origins, forecast.origin)
    warning_log = WarningLog(settings.batch.strict, forecast.tokenizers, forecast.checkpoint)
    seconds: float | None = 0.0
    memory, last, first = 0, None, None
    swept = [axis.field for axis in batch.sweep.axes] if batch.sweep else []
    names = set[Path]()  # a name that is in use moves the later ones too
    settings.target.model_hash = forecast.hash
    for item, warnings, token_counts in checked(batch, forecast, settings, warning_log):
        path = settings.target.free_path(item.name, item.number, names)
        names.add(path)
        last = item.request
        one = forecast.seconds(last)
        seconds = None if seconds is None or one is None else seconds + one
        memory = max(memory, forecast.memory(last, settings.batch_size or 1))
        if settings.json:
            checks = {"tokens": token_counts, "warnings": warnings}
            print_json({"path": str(path), **describe(item, forecast, settings), **checks})
        else:
            first = first or last
            print_row(path, f"seed {last.seed}", *settings_told(last, first, swept), last.prompt)
    if last is not None:
        for line in summary(forecast, last, warning_log.pictures, seconds, memory):
            settings.note(line)
    notes = [*batch.notes, *batch.library.images.notes]
    warning_log.report(batch.warnings, settings.note, notes)
    for error in batch.errors.values():
        print_error(error, settings.json)
    return SOME_FAILED if batch.errors else 0


def forecast_of(batch: Batch, device: DeviceOptions) -> "Forecast":
    """The forecast for a batch's model, kept in memory as the options say. Txt2imgError."""
    from txt2img.pipeline.estimates.forecast import forecast_for

    where = device.device, device.dtype, device.low_memory, device.quantize
    return replace(
        forecast_for(batch.model, batch.library, *where),
        optimize=not device.no_optimize,
        offload=device.offload,
        max_memory=device.memory_limit,
    )


def settings_told(request: Request, first: Request, swept: Sequence[str]) -> list[str]:
    """The settings that tell a picture apart: those swept, and those that the first has not."""
    plain = [row.name for row in FIELDS.values() if row.scalar or row.name == "loras" or row.listed]
    names = [name for name in plain if getattr(request, name) != getattr(first, name)]
    told = dict.fromkeys([*(name for name in swept if name in plain), *names])
    return [
        f"{FIELDS[name].label} {described(request, name)}"
        for name in told
        if name not in ("seed", "count")
    ]


def checked(
    batch: Batch, forecast: "Forecast", settings: RunSettings, warning_log: WarningLog
) -> Iterator[tuple[Item, list[str], dict[str, list[int]]]]:
    """The pictures left to draw, each with its warnings and tokens per chunk. BadRequest."""
    for item in pending(batch, forecast, settings):
        try:
            yield item, *warning_log.check(item)
        except BadRequest as error:
            if not batch.skip_errors:
                raise
            batch.errors["prompt", item.index] = error


def pending(batch: Batch, forecast: "Forecast", settings: RunSettings) -> Iterator[Item]:
    """The pictures left to draw; with ids if these are used and the model's hash is known.

    BadRequest.
    """
    resume = settings.batch.resume and settings.target.folder.is_dir()
    model = forecast.origin if resume or settings.json else None
    pictures = items(
        filled_requests(batch, forecast, settings.target.format), settings.target, model
    )
    shard = settings.batch.shard_items(pictures)
    if not resume or model is None:
        if resume:
            batch.notes.append("this model was never loaded here, so finished pictures are unknown")
        yield from shard
        return
    with ResumeIndex(settings.target, model) as index:
        yield from batch.pending(shard, index)


def filled_requests(
    batch: Batch, forecast: "Forecast", form: Format | None = None
) -> Iterator[Request]:
    """Each picture's request with the model's defaults. BadRequest, unless errors are skipped.

    A file of a format, if one is given, must be able to hold it.
    """
    made_by = forecast.origin or Origin()
    for number, request in enumerate(batch.pictures()):
        try:
            filled = forecast.filled(request)
            if form is not None:
                check_record_fits(filled, made_by, form)
            yield filled
        except BadRequest as error:
            if not batch.skip_errors:
                raise
            batch.errors["forecast", number] = error


def describe(item: Item, forecast: "Forecast", settings: RunSettings) -> dict[str, object]:
    """A picture's request and what it would be drawn with, for its JSON record."""
    request, seconds = item.request, forecast.seconds(item.request)
    return {
        "index": item.index,
        **({"id": item.id} if item.id else {}),
        **request_summary(request),
        "model": forecast.checkpoint.name,
        "model_file": str(forecast.path),
        "hash": forecast.hash or None,
        "family": forecast.checkpoint.family.name,
        "prediction": forecast.checkpoint.family.prediction,
        "device": forecast.device,
        "dtype": forecast.dtype,
        **({"quantized": text} if (text := forecast.checkpoint.quantized) else {}),
        "compat": request.compat,
        "clip_skip": request.clip_skip,
        "loras": [lora.name for lora in request.loras],
        "embeddings": [word.token for word in request.embeddings],
        "seconds": None if seconds is None else round(seconds, 3),
        "memory": forecast.memory(request, settings.batch_size or 1),
    }


def summary(
    forecast: "Forecast", request: Request, count: int, seconds: float | None, memory: int
) -> Iterator[str]:
    """Lines for a person: the model, the kind of picture, time and memory."""
    checkpoint = forecast.checkpoint
    known = f", hash {forecast.hash}" if forecast.hash else ""
    is_here = forecast.device in ("cpu", guess_device(None))
    where = (
        forecast.device if is_here else f"{forecast.device}, which was not found on this machine"
    )
    yield f"{checkpoint.name}: {checkpoint.family.name}{known}; {forecast.dtype} on {where}"
    if checkpoint.quantized:
        yield f"weights: {checkpoint.quantized}"
    if forecast.quantize:
        network = checkpoint.family.network
        yield f"weights: {network.component}: its matrices become {forecast.quantize} when loaded"
    yield from (peak := forecast.peak(request)).lines
    shape = f"{request.width}x{request.height} pixels, {request.steps} steps of {request.sampler}"
    if request.image is not None and request.strength is not None:
        drawn = steps_of(request, rules(request)).drawn
        shape = f"{shape}, from a picture at strength {request.strength:g} ({drawn} steps drawn)"
    if request.has_hires:
        (width, height), steps = drawn_size(request), second_steps(request)
        count_of_steps = "1 step" if steps == 1 else f"{steps} steps"
        shape = f"{shape}, then {width}x{height} by {upscaler_of(request)}, {count_of_steps}"
    if request.upscale is not None:
        by = "" if request.upscale_by is None else f" {request.upscale_by:g} times"
        shape = f"{shape}, upscaled{by} by {request.upscale}"
    pictures = "1 picture" if count == 1 else f"{count:,} pictures, the last"
    guidance = "" if request.guidance is None else f", guidance {request.guidance:g}"
    yield f"{pictures} of {shape}, schedule {request.schedule}, cfg {request.cfg:g}{guidance}"
    speed = forecast.speed(request)
    needed = f"{format_size(memory)} of memory{' at the peak' if peak.line else ''}"
    if seconds is None or speed is None:
        unknown = "time unknown: nothing like it was drawn here yet"
        yield f"{'about' if peak.line else 'at least'} {needed}; {unknown}"
        return
    load = f", plus {duration(speed.load)} to load" if speed.load else ""
    runs = "the last run" if speed.runs == 1 else f"{speed.runs:,} runs"
    yield f"about {duration(seconds)}{load}; {needed}; estimated from {runs}"


def duration(seconds: float) -> str:
    """A time in seconds, minutes, or hours and minutes."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
