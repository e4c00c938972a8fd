"""The command in the processes of a launch: one exit code, one contact sheet."""

import json
from pathlib import Path

from txt2img.cli.terminal.console import log
from txt2img.errors import Txt2imgError
from txt2img.system import launcher

Drawn = dict[int, tuple[Path, int | None]]  # index in the batch → path and seed, a retry's too
NO_SHEET = (
    "Note: processes without MASTER_ADDR draw no sheet; use --resume when all are done to get it."
)

BY_SRUN = (
    "srun's {} processes draw a part of the pictures each; for work of their own, start them with "
    "env -u SLURM_STEP_ID"
)


def gather_results(code: int, drawn: Drawn | None) -> tuple[int, Drawn | None]:
    """The worst exit code of all processes and, in the first of them, what all have drawn.

    Waits for all, since a launcher ends all processes when one fails.
    """
    group = launcher.current()
    if group.world == 1:
        return code, drawn
    if not group.can_rendezvous:
        if group.is_main and drawn is not None:
            log(NO_SHEET)
        return code, None
    from txt2img.system.device.rendezvous import gather

    rows = [[i, str(path), seed] for i, (path, seed) in (drawn or {}).items()]
    try:
        results = [json.loads(text) for text in gather(json.dumps([code, rows]))]
    except Txt2imgError as error:  # all pictures of this process are written
        log(f"Note: {error}")
        return code, None
    code = max(its_code for its_code, _ in results)
    if drawn is None or not group.is_main:
        return code, None
    return code, {i: (Path(path), seed) for _, rows in results for i, path, seed in rows}
