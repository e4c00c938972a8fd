"""The command among the processes of a launch: one seed, one exit code, one sheet."""

import json
from dataclasses import replace
from pathlib import Path

from txt2img.cli.terminal.console import log
from txt2img.errors import Txt2imgError
from txt2img.request.request import Request
from txt2img.system import launcher

# Paths and seeds (retries have others than were asked for) by a picture's place in the batch.
Drawn = dict[int, tuple[Path, int | None]]
NO_SHEET = "Note: processes that cannot meet draw no sheet: say --resume when all are done."


def seeded(base: Request) -> Request:
    """The request with a seed; one that is drawn is the same in all processes that can meet."""
    here = launcher.found()
    if base.seed is not None or not here.can_rendezvous:
        return base.seeded()
    from txt2img.system.device.rendezvous import agreed

    drawn = base.seeded().seed
    assert drawn is not None
    return replace(base, seed=agreed(here, drawn))


def together(code: int, drawn: Drawn | None) -> tuple[int, Drawn | None]:
    """The worst exit code of all processes, and in the first of them what all have drawn.

    A launcher ends all others when one fails: so none fails before all are done.
    """
    here = launcher.found()
    if here.world == 1:
        return code, drawn
    if not here.can_rendezvous:
        if here.is_main and drawn is not None:
            log(NO_SHEET)
        return code, None
    from txt2img.system.device.rendezvous import gathered

    rows = [[i, str(path), seed] for i, (path, seed) in (drawn or {}).items()]
    try:
        said = [json.loads(text) for text in gathered(here, json.dumps([code, rows]))]
    except Txt2imgError as error:  # the pictures are written: that is no failure of this one
        log(f"Note: {error}")
        return code, None
    code = max(outcome[0] for outcome in said)
    if drawn is None or not here.is_main:
        return code, None
    return code, {i: (Path(path), seed) for _, rows in said for i, path, seed in rows}
