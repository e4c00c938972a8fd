"""Fooocus' metadata: a JSON object in `parameters`, or in EXIF's comment."""

import re
from collections.abc import Mapping
from dataclasses import replace

from txt2img.images.metadata.parsed import (
    ParsedMetadata,
    add_refiner,
    from_table,
    list_in,
    written_json,
)

FIELDS = {
    "negative_prompt": "negative",
    "guidance_scale": "cfg",
    "base_model": "model",
    "scheduler": "schedule",
    **{name: name for name in ("prompt", "steps", "seed", "sampler", "vae", "clip_skip")},
}
OWN = ("metadata_scheme", "base_model", "adm_guidance")


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata, known by keys of its own."""
    table = written_json(texts)
    if not any(name in table for name in OWN):
        return None
    parsed = from_table(table, FIELDS, "refiner_switch")
    size = re.fullmatch(r"\(?(\d{1,6}), ?(\d{1,6})\)?", str(table.get("resolution", "")))
    if size:
        parsed.values.update(width=size[1], height=size[2])
    loras = [row for row in list_in(table, "loras") if isinstance(row, list) and len(row) > 1]
    if loras:
        parsed.values["loras"] = [{"name": name, "unet": weight} for name, weight, *_ in loras]
    add_refiner(parsed.values, table, "refiner_switch")
    parsed.values["compat"] = "comfyui"  # it draws with ComfyUI's code
    digits = str(table.get("base_model_hash", ""))
    return replace(parsed, hash=digits if re.fullmatch("[0-9a-f]{10}", digits) else "")
