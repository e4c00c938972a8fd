"""Draw the batch of a command line: load the model, draw each picture, report it."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from txt2img.cli import distributed
from txt2img.cli.dry_run import dry_run
from txt2img.cli.options.enhance import EnhanceOptions
from txt2img.cli.provenance import differences
from txt2img.cli.requests import Batch
from txt2img.cli.run_options import SOME_FAILED, RunOptions, RunSettings, output_target
from txt2img.cli.terminal.console import Bar, log, print_json, print_path, progress
from txt2img.cli.terminal.results import ProgressMeter, print_error, print_failed, print_finished
from txt2img.cli.terminal.signals import STOP
from txt2img.cli.warning_log import WarningLog
from txt2img.images import output
from txt2img.images.resume import Item, ResumeIndex, items
from txt2img.request.compat import rules, steps_of
from txt2img.request.hires import all_steps
from txt2img.system import launcher
from txt2img.system.resources import require_address_space

if TYPE_CHECKING:
    from txt2img.cli.live_preview import Viewer
    from txt2img.pipeline.batch import Event
    from txt2img.pipeline.estimates.timer import Timer
    from txt2img.pipeline.latent_store import LatentStore
    from txt2img.weights.model import Model


def run(batch: Batch, options: RunOptions, context: typer.Context) -> int:
    """Draw a batch, or describe it with --dry-run. Returns the exit code."""
    group = launcher.current()
    is_main = group.is_main  # of several processes one reports for all
    preview = options.preview.with_vae_path()
    settings = RunSettings(
        output_target(options, batch.several, context, batch.image_folders),
        options.batch,
        options.batch.batch_size or 0,
        options.device,
        preview if is_main else replace(preview, preview=None, preview_file=None),
        options.output.quiet or not is_main,
        options.output.json,
        options.output.save_latents,
    )
    if options.batch.dry_run and not is_main:
        return 0
    if not batch.several and not is_main:
        return distributed.gather_results(0, None)[0]
    if group.by_srun and group.world > 1:
        settings.note(distributed.BY_SRUN.format(group.world))
    with_bar = not (settings.quiet or options.preview.no_progress)
    asked = options.enhance != EnhanceOptions()
    if asked and (enhancer := options.enhance.settings()) is not None:
        from txt2img.cli.enhance import enhance

        with progress(with_bar, "rewriting") as bar:
            enhance(batch, enhancer, settings, bar)
    if options.batch.dry_run:
        return dry_run(batch, settings)
    with settings.target, progress(with_bar, "loading") as bar:
        return draw(batch, settings, bar)


def draw(batch: Batch, settings: RunSettings, bar: Bar) -> int:
    """Load the model, draw all pictures and print each when it is written."""
    from txt2img.weights.checkpoint import find_model, open_checkpoint

    require_address_space()
    # What can fail does before torch is imported, which takes long.
    find_model(batch.model)
    library = batch.library
    has_files = library.loras or library.embeddings or library.vae or library.controls
    has_files = has_files or library.ip_adapters
    if has_files or batch.model != "default":
        from txt2img.weights.file_summary import check_library

        checkpoint = open_checkpoint(batch.model, overrides=batch.library.overrides)
        check_library(batch.library, checkpoint.family, checkpoint.name)
    from txt2img.weights import model_cache
    from txt2img.weights.model import origin, precision

    began = time.perf_counter()
    model = settings.device.load_model(batch.model, batch.library)
    seconds = 0.0 if model_cache.MODEL_CACHE.hit else time.perf_counter() - began
    if settings.preview.verbose:
        from txt2img.system.device.device import description
        from txt2img.weights.model import device_of

        batch.notes.append(description(device_of(model), precision(model)))
    if batch.origins:
        batch.warnings += differences(batch.origins, origin(model))
    return draw_all(model, batch, settings, bar, seconds)


def draw_all(
    model: "Model", batch: Batch, settings: RunSettings, bar: Bar, load_seconds: float
) -> int:
    """Draw the pictures that are not there yet. Returns the exit code."""
    from txt2img.pipeline.batch import BatchSettings, filled_requests, on_gpu
    from txt2img.pipeline.batch import run as draw_batch
    from txt2img.pipeline.batch_size import auto_batch_size
    from txt2img.pipeline.estimates.timer import Timer
    from txt2img.pipeline.latent_store import LatentStore
    from txt2img.weights.model import origin

    read_pictures(batch, bar)
    target, policy = settings.target, settings.batch.policy
    size = settings.batch_size or (auto_batch_size(model, batch.pictures()) if on_gpu(model) else 1)
    settings, made_by = replace(settings, batch_size=size), origin(model)

    def shard() -> Iterator[Item]:
        errors = batch.errors if policy.skip else None
        requests = filled_requests(batch.pictures(), model, errors, target.format)
        return settings.batch.shard_items(items(requests, target, made_by))

    viewer = open_viewer(model, settings, bar, batch.several)
    with ExitStack() as stack:
        index = stack.enter_context(ResumeIndex(target, made_by)) if settings.batch.resume else None
        meter = check_all(model, shard(), index, batch, settings, bar)
        plan = launcher.current().shard(shard())
        store = LatentStore(target, made_by, settings.save_latents)
        stack.callback(report_kept_latents, store, bar)
        drawing = BatchSettings(target, size, policy, index, store, lambda: STOP.stop_requested)
        drawn: distributed.Drawn | None = {} if batch.sweep else None
        timer = Timer(model, load_seconds)
        with timer, closing(draw_batch(plan, model, drawing)) as events:
            failed = report_events(events, timer, viewer, meter, settings.json, drawn)
        code = SOME_FAILED if failed or batch.errors else 0
        if launcher.current().world > 1:
            code, drawn = distributed.gather_results(code, drawn)
        if drawn is not None:
            finish_sweep(batch, shard(), index, drawn, settings)
    return code


def read_pictures(batch: Batch, bar: Bar) -> None:
    """Find and hash all pictures to begin from, which takes long for many. BadFile, BadRequest."""
    if batch.image_folders is None:
        return
    total = batch.combinations or sum(request.count for request in batch.requests)
    for done, _ in enumerate(batch.pictures(), start=1):
        bar.advance("reading pictures", done, total, f"{done}/{total}")


def open_viewer(model: "Model", settings: RunSettings, bar: Bar, several: bool) -> "Viewer | None":
    """The viewer of a run; None if no preview is shown or saved. Txt2imgError."""
    if not settings.preview.is_on(settings.quiet):
        return None
    from txt2img.cli.live_preview import viewer_of

    return viewer_of(model, settings.preview, settings.target, bar, settings.quiet, several)


def check_all(
    model: "Model",
    pictures: Iterable[Item],
    index: ResumeIndex | None,
    batch: Batch,
    settings: RunSettings,
    bar: Bar,
) -> ProgressMeter:
    """Check every picture, report warnings and errors, count what is left to draw. BadRequest."""
    from txt2img.pipeline.batch import batches

    strict, skips = settings.batch.strict, batch.is_unwritten
    warning_log = WarningLog(strict, model.tokenizers, model.checkpoint, skips)
    mine = launcher.current().shard(warning_log.checked(pictures, batch.skip_errors))
    left = steps = 0
    for group in batches(batch.pending(mine, index), settings.batch_size):
        left += len(group)
        one = group[0].request
        steps += all_steps(one) if one.has_hires else steps_of(one, rules(one)).drawn
    target, adapters = settings.target, model.adapters
    path = target.folder / target.pattern
    if target.exact and target.resume and left and os.path.lexists(path):
        raise output.already_exists(path)
    with bar.paused():
        warnings = [*batch.warnings, *adapters.warnings]
        hidden = [] if settings.preview.verbose else adapters.details
        notes = [*batch.notes, *batch.library.images.notes]
        notes += [note for note in adapters.notes if note not in hidden]
        warning_log.report(warnings, settings.note, notes)
        for error in batch.errors.values() if launcher.current().is_main else ():
            print_error(error, settings.json)
    return ProgressMeter(bar, left + batch.done, batch.done, steps, warning_log.by_picture)


def report_kept_latents(store: "LatentStore", bar: Bar) -> None:
    """Tell which latents have no picture yet, and how to get it."""
    with bar.paused():
        for line in store.remarks():
            log(line)


def report_events(
    events: "Iterable[Event]",
    timer: "Timer",
    viewer: "Viewer | None",
    meter: ProgressMeter,
    json: bool,
    drawn: distributed.Drawn | None,
) -> int:
    """Print what a run yields, and add its pictures to `drawn`. Returns the number of failures."""
    from txt2img.pipeline.batch import Failed, Finished, Started, Step, Upscaling

    failed = pending = 0
    stop_reported = False
    for event in events:
        if viewer:
            viewer.on_event(event)
        timer.on_event(event)
        if isinstance(event, Started):
            pending += len(event.items)
            STOP.finishing = True
        with nullcontext() if isinstance(event, Step | Upscaling) else meter.bar.paused():
            report_event(event, meter, json)
        if STOP.stop_requested and not stop_reported:
            stop_reported = True
            with meter.bar.paused():
                log("Finishing the picture; once more stops at once.")
        if isinstance(event, Finished) and drawn is not None:
            drawn[event.item.index] = (event.path, event.request.seed)
        if isinstance(event, Finished | Failed):
            failed += isinstance(event, Failed)
            pending -= 1
            meter.ready += 1
        if not pending:
            STOP.finished()
        if viewer and isinstance(event, Finished):
            viewer.raise_failure()
    return failed


def report_event(event: "Event", meter: ProgressMeter, json: bool) -> None:
    """Print one event, or show it on the progress meter."""
    from txt2img.pipeline.batch import Failed, Finished, Notice, Started, Step, Upscaling

    if isinstance(event, Started):
        meter.begin(event)
    elif isinstance(event, Step):
        meter.show(event)
    elif isinstance(event, Upscaling):
        meter.show_upscaling(event)
    elif isinstance(event, Notice):
        log(event.line)
    elif isinstance(event, Failed):
        print_failed(event, json)
    elif isinstance(event, Finished) and event.path != Path("-"):
        print_finished(event, json, meter.warnings.get(event.item.index, []))


def finish_sweep(
    batch: Batch,
    pictures: Iterable[Item],
    index: ResumeIndex | None,
    drawn: distributed.Drawn,
    settings: RunSettings,
) -> None:
    """Write a sweep's contact sheet and table, and print their paths."""
    from txt2img.images import contact_sheet

    if settings.batch.part != (1, 1):
        settings.note("A shard draws no sheet; when all are done, run --resume without --shard.")
        return
    cells = []
    for item in pictures:
        earlier = index and index.done(item)
        picture = drawn.get(item.index) or (earlier and (earlier, item.request.seed))
        if picture:
            path, seed = picture
            cells.append((path, replace(item.request, seed=seed)))
    assert batch.sweep is not None
    for path in contact_sheet.write(cells, batch.sweep, settings.target):
        if settings.json:
            print_json({"path": str(path), "pictures": len(cells)})
        else:
            print_path(path)
