"""The sections that help shows options in: what is used most comes first."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from txt2img.request.fields import ADAPTERS, COMPAT, COMPONENTS, FIELDS, PICTURE, SPEED

if TYPE_CHECKING:
    import typer
    from typer._click.core import Parameter

# By the parameters' names, each in one section; a command shows those that it has. Those that are
# fields of a request name their sections themselves.
_SECTIONS = {
    PICTURE: ("picture",),
    "Where it goes": ("out", "overwrite", "format", "quality", "json", "quiet"),
    "Many pictures": (
        *("prompts_file", "sweep", "zip", "wildcards", "resume", "shard", "batch_size"),
        *("on_error", "reject", "retries", "dry_run", "strict"),
    ),
    ADAPTERS: ("lora_dir", "embedding", "embedding_dir", *COMPONENTS),
    COMPAT: (),
    "Seeing it come into being": (
        *("show", "preview", "preview_every", "preview_vae", "save_steps", "animate"),
        *("no_progress", "verbose"),
    ),
    SPEED: (
        *("device", "dtype", "warm", "no_warm"),
        *("compile", "low_memory", "offload", "quantize", "vae_tiling", "keep_latents"),
    ),
}
SECTIONS = {
    title: (*(field.option for field in FIELDS.values() if field.section == title), *names)
    for title, names in _SECTIONS.items()
}
OTHERS = "Options"  # what no section has: those of small commands, and of the program itself
FEW = 20  # options of a command that need no sections


def sorted_out(
    params: "Iterable[Parameter]", context: "typer.Context"
) -> dict[str, list[tuple[str, str]]]:
    """Each section's options and what help says of them, in the table's order."""
    told = {p.name: record for p in params if (record := p.get_help_record(context))}
    found: dict[str, list[tuple[str, str]]] = {}
    if len(told) > FEW:
        for section, names in SECTIONS.items():
            found[section] = [told.pop(name) for name in names if name in told]
    found[OTHERS if not found else "This program"] = list(told.values())
    return {section: rows for section, rows in found.items() if rows}
