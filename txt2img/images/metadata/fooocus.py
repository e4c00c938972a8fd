"""Fooocus' metadata: a JSON object in `parameters`."""

import re
from collections.abc import Mapping

from txt2img.images.metadata.parsed import (
    ParsedMetadata,
    add_refiner,
    from_table,
    json_table,
    list_in,
)

FIELDS = {
    "negative_prompt": "negative",
    "guidance_scale": "cfg",
    "base_model": "model",
    "scheduler": "schedule",
    **{name: name for name in ("prompt", "steps", "seed", "sampler")},
}


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata, where `parameters` is not A1111's text. ValueError."""
    if not texts.get("parameters", "").startswith("{"):
        return None
    table = json_table(texts["parameters"])
    parsed = from_table(table, FIELDS)
    size = re.fullmatch(r"\(?(\d{1,6}), ?(\d{1,6})\)?", str(table.get("resolution", "")))
    if size:
        parsed.values.update(width=size[1], height=size[2])
    loras = [row for row in list_in(table, "loras") if isinstance(row, list) and len(row) > 1]
    if loras:
        parsed.values["loras"] = [{"name": name, "unet": weight} for name, weight, *_ in loras]
    add_refiner(parsed.values, table, "refiner_switch")
    parsed.values["compat"] = "comfyui"  # it draws with ComfyUI's code
    return parsed
