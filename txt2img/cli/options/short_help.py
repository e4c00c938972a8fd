"""-h: the options that people use most, a line each, on one screen; --help has them all."""

import re
import shutil
from collections.abc import Iterable, Sequence
from textwrap import wrap

from typer.core import TyperOption

COMMON = (
    *("negative", "model", "width", "height", "steps", "cfg", "sampler", "seed", "count"),
    *("output", "overwrite", "quiet", "prompts", "params-from", "sweep", "lora", "image"),
    *("preview", "device", "dry-run"),
)
WIDTH_MAX = 100  # columns
_MORE = re.compile(r"[:;]\s|\.(?:\s|$)| \(default")  # after it an option's help has details


def short_help(rows: Sequence[tuple[str, str]], commands: Sequence[str], total: int) -> str:
    """The short help: rows of an option's flags and its help, and `total`, how many there are."""
    width = min(shutil.get_terminal_size().columns, WIDTH_MAX)
    column = max(len(flags) for flags, _ in rows) + 2
    lines = ['Usage: txt2img "what to draw" [OPTIONS]']
    for flags, text in rows:
        summary = _MORE.split(text)[0]
        room = width - column - 3
        cut = summary if len(summary) <= room else f"{summary[: room - 1].rstrip(' ,')}…"
        lines.append(f"  {flags:<{column}}{cut}")
    lines += wrap(f"Commands: {', '.join(commands)}", width, subsequent_indent=" " * 10)
    lines.append(f"txt2img --help describes all {total} options, txt2img COMMAND -h a command.")
    return "\n".join(lines)


def in_order(options: Iterable[TyperOption]) -> list[TyperOption]:
    """The options of the short help, the most common first."""
    by_flag = {flag.removeprefix("--"): option for option in options for flag in option.opts}
    return [by_flag[name] for name in COMMON]
