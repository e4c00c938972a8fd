"""How a sweep ends: in a labelled sheet and a table."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from txt2img.cli.distributed import Drawn
from txt2img.cli.requests import Wish
from txt2img.cli.terminal.console import print_json, print_path
from txt2img.images.resume import Item, Ledger

if TYPE_CHECKING:
    from txt2img.cli.run import Order


def finish_sweep(
    wish: Wish, plan: Iterable[Item], ledger: Ledger | None, drawn: Drawn, order: "Order"
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
