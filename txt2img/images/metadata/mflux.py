"""mflux's metadata: a JSON object in EXIF's comment.

Its image strength is the share of the steps that is left out, at least one of them.
"""

import math
from collections.abc import Mapping

from txt2img.images.metadata.a1111_versions import NO_RULES
from txt2img.images.metadata.parsed import (
    ParsedMetadata,
    file_stem,
    from_table,
    list_in,
    written_json,
)
from txt2img.system.text import shown

FIELDS = {
    "negative_prompt": "negative",
    **{name: name for name in ("prompt", "model", "seed", "steps", "width", "height", "guidance")},
}
OWN = ("lora_paths", "lora_scales", "image_path", "image_strength")
# What decides nothing, or only how fast and where it was drawn.
IGNORED = ("mflux_version", "base_model", "precision", "generation_time_seconds", "created_at")


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata, known by its version."""
    table = written_json(texts)
    if "mflux_version" not in table:
        return None
    parsed = from_table(table, FIELDS, *OWN, *IGNORED)
    scales = list_in(table, "lora_scales")
    loras = [*zip(list_in(table, "lora_paths"), scales, strict=False)]
    if loras:
        parsed.values["loras"] = [{"name": file_stem(name), "unet": by} for name, by in loras]
    picture, kept = table.get("image_path"), table.get("image_strength")
    if picture and isinstance(kept, int | float) and kept > 0:  # 0 begins from noise alone
        parsed.values["image"] = picture
        parsed.values["strength"] = strength(kept, table.get("steps"))
    elif picture and kept is None:
        parsed.notes.append(f"image_path {shown(picture, 40)} is not carried over")
    parsed.notes.append(NO_RULES.format("by mflux"))
    return parsed


def strength(kept: float, steps: object) -> float:
    """The strength that draws as many of the steps as mflux does (Config.init_time_step)."""
    kept = max(0.0, min(1.0, kept))
    if not isinstance(steps, int) or steps < 1:
        return 1 - kept
    drawn = steps - max(1, int(steps * kept))
    share = drawn / steps
    return math.nextafter(share, 1) if int(steps * share) < drawn else share
