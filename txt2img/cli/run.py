"""Drawing what a command line wishes: the model is loaded, each picture is drawn and said."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from txt2img.cli import distributed
from txt2img.cli.dry_run import rehearse
from txt2img.cli.load_model import load_model, loaded_in
from txt2img.cli.options.groups import RunOptions
from txt2img.cli.output_target import destination
from txt2img.cli.provenance import changed
from txt2img.cli.requests import Wish
from txt2img.cli.run_options import SOME_FAILED, RunSettings
from txt2img.cli.terminal.console import Bar, log, print_json, print_path, progress
from txt2img.cli.terminal.results import ProgressMeter, print_error, print_failed, print_finished
from txt2img.cli.terminal.signals import STOP
from txt2img.cli.warning_log import Care
from txt2img.errors import Txt2imgError
from txt2img.images import output
from txt2img.images.resume import Item, ResumeIndex, items
from txt2img.system import launcher

if TYPE_CHECKING:
    from txt2img.pipeline.batch import Event
    from txt2img.pipeline.latent_store import LatentStore
    from txt2img.weights.model import Model


def carry_out(wish: Wish, manner: RunOptions, context: typer.Context) -> int:
    """Draw all that is wished, or say what would be; gives the exit code."""
    asked, batching = context.params, manner.batching
    viewing = manner.viewing.found()
    order = RunSettings(
        destination(manner.filed, wish.several, batching, context),
        batching,
        asked["batch_size"] or 0,
        manner.precision,
        asked["quiet"] or not launcher.found().is_main,  # one speaks for all
        asked["json"],
        viewing if launcher.found().is_main else replace(viewing, preview=None),
    )
    if batching.dry_run:
        return rehearse(wish, order) if launcher.found().is_main else 0
    if not wish.several and not launcher.found().is_main:
        return distributed.together(0, None)[0]
    with order.target, progress(not (order.quiet or batching.no_progress), "loading") as bar:
        return draw(wish, order, bar)


def draw(wish: Wish, order: RunSettings, bar: Bar) -> int:
    """Load the model, draw all pictures, say each when it is written; gives the exit code."""
    from txt2img.weights.checkpoint import find

    find(wish.model)  # a name that is not there is told before torch is imported: that takes long
    from txt2img.pipeline.batch import origin, precision

    began = time.perf_counter()
    model = load_model(wish.model, order.precision, wish.library)
    if order.precision.verbose:
        from txt2img.system.device.device import description
        from txt2img.weights.model import device_of

        wish.remarks.append(description(device_of(model), precision(model)))
    wish.warnings += changed(wish.made_by, origin(model))
    return draw_with(model, wish, order, bar, loaded_in(time.perf_counter() - began))


def draw_with(model: "Model", wish: Wish, order: RunSettings, bar: Bar, loading: float) -> int:
    """Draw what is not there yet with a model that took so long to load; gives the exit code."""
    from txt2img.cli.live_preview import viewer_of
    from txt2img.pipeline import batch
    from txt2img.pipeline.batch_size import auto_batch_size
    from txt2img.pipeline.estimates.timer import Timer
    from txt2img.pipeline.latent_store import LatentStore

    size = order.batch_size or auto_batch_size(model, wish.pictures())
    order, batching = replace(order, batch_size=size), order.batching
    refused: dict[int, Txt2imgError] | None = {} if batching.policy.skip else None

    def shard() -> Iterator[Item]:
        pictures = batch.filled_requests(wish.pictures(), model, refused, order.target.format)
        return batching.shard_items(items(pictures, order.target, model.hash))

    viewer = viewer_of(model, order.viewing, order.target, bar, order.quiet, wish.several)
    with ExitStack() as stack:
        ledger = stack.enter_context(ResumeIndex(order.target)) if batching.resume else None
        meter = looked_through(model, shard(), ledger, wish, order, bar)
        failures = [*wish.failures(), *(refused or {}).values()]
        with bar.paused():
            for error in failures if launcher.found().is_main else ():
                print_error(error, order.json)
        plan = launcher.found().shard(shard())
        groups = batch.claimed_batches(plan, ledger, size) if ledger else batch.batches(plan, size)
        stack.enter_context(closing(groups))  # before the ledger that it gives claims back to
        drawn: distributed.Drawn | None = {} if wish.sweep else None
        shelf = LatentStore(order.target, batch.origin(model), batching.keep_latents)
        stack.callback(tell_kept, shelf, bar)
        run = batch.run(model, groups, order.target, batching.policy, shelf, lambda: STOP.asked)
        drawing = viewer.watch(run)
        events = Timer(model, loading).through(drawing)
        with closing(drawing), closing(events):
            failed = follow(events, meter, order.json, drawn)
        code, drawn = distributed.together(SOME_FAILED if failed or failures else 0, drawn)
        if drawn is not None:
            finish_sweep(wish, shard(), ledger, drawn, order)
    return code


def looked_through(
    model: "Model",
    shard: Iterable[Item],
    ledger: ResumeIndex | None,
    wish: Wish,
    order: RunSettings,
    bar: Bar,
) -> ProgressMeter:
    """Go through all that is to be drawn, and say what is worth it. BadRequest."""
    worn = model.wardrobe
    care = Care(order.batching.strict, [encoder.tokenizer for encoder in model.text.encoders])
    meter = survey(launcher.found().shard(care.over(shard, wish.lenient)), ledger, wish, order, bar)
    warnings, remarks = [*wish.warnings, *worn.warnings], [*wish.remarks, *worn.notes]
    with bar.paused():
        care.settle(warnings, order.note, remarks)
    return meter


def tell_kept(shelf: "LatentStore", bar: Bar) -> None:
    """Say which latents have no picture yet, and how to get it."""
    with bar.paused():
        for line in shelf.remarks():
            log(line)


def survey(
    plan: Iterable[Item], ledger: ResumeIndex | None, wish: Wish, order: RunSettings, bar: Bar
) -> ProgressMeter:
    """Go through a whole batch once: what is wrong is found before any of it is drawn."""
    from txt2img.pipeline.batch import batches

    total = left = steps = 0

    def pending() -> Iterator[Item]:
        nonlocal total
        for item in plan:
            total += 1
            if ledger is None or not ledger.done(item):
                yield item

    for group in batches(pending(), order.batch_size):
        left += len(group)
        steps += group[0].request.steps or 0
    if left < total:
        wish.remarks.append(f"{total - left} of {total} pictures are there already")
    path = order.target.folder / order.target.pattern
    if order.target.exact and order.target.resume and left and os.path.lexists(path):
        raise output.already_exists(path)
    return ProgressMeter(bar, total, total - left, steps)


def follow(
    events: "Iterable[Event]", meter: ProgressMeter, json: bool, drawn: distributed.Drawn | None
) -> int:
    """Say what happens while it does; gives how many pictures failed. Stopped."""
    from txt2img.pipeline import batch
    from txt2img.pipeline.writer import Failed, Finished

    failed = left = 0
    told = False
    for event in events:
        with nullcontext() if isinstance(event, batch.Step) else meter.bar.paused():
            if isinstance(event, batch.Started):
                left += len(event.items)
                STOP.finishing = True
                meter.begin(event)
            elif isinstance(event, batch.Step):
                meter.show(event)
            elif isinstance(event, batch.Notice):
                log(event.line)
            elif isinstance(event, Failed):
                print_failed(event, json)
                failed += 1
            elif event.path != Path("-"):
                print_finished(event, json)
                if drawn is not None:
                    drawn[event.item.index] = (event.path, event.request.seed)
        if STOP.asked and not told:
            told = True
            with meter.bar.paused():
                log("Finishing the picture; once more stops at once.")
        if isinstance(event, Finished | Failed):
            left -= 1
            meter.ready += 1
        if not left:
            STOP.finished()
    return failed


def finish_sweep(
    wish: Wish,
    plan: Iterable[Item],
    ledger: ResumeIndex | None,
    drawn: distributed.Drawn,
    order: RunSettings,
) -> None:
    """Write a sweep's sheet and table, and say where they are."""
    from txt2img.images import contact_sheet

    if order.batching.part != (1, 1):
        order.note("A shard draws no sheet: when all are done, say --resume without --shard.")
        return
    cells = []
    for item in plan:
        before = ledger and ledger.done(item)
        known = drawn.get(item.index) or (before and (before, item.request.seed))
        if known:
            cells.append((known[0], replace(item.request, seed=known[1])))
    assert wish.sweep is not None
    for path in contact_sheet.write(cells, wish.sweep.axes, order.target, wish.sweep.columns):
        if order.json:
            print_json({"path": str(path), "pictures": len(cells)})
        else:
            print_path(path)
