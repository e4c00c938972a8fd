"""InvokeAI's metadata, as it writes them since version 3."""

import re
from collections.abc import Iterator, Mapping

from txt2img.images.metadata.parsed import (
    ParsedMetadata,
    Table,
    add_refiner,
    from_table,
    json_table,
    list_in,
    model_name,
    split_karras,
    table_in,
)
from txt2img.request.a1111_units import unit_fields
from txt2img.request.input_image import UNNAMED

FIELDS = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative",
    "cfg_scale": "cfg",
    "cfg_rescale_multiplier": "cfg_rescale",
    "scheduler": "sampler",
    **{name: name for name in ("width", "height", "seed", "steps", "clip_skip")},
}
# The lists of what pictures control it, and how each names its model.
UNITS = {
    "controlnets": "control_model",
    "t2iAdapters": "t2i_adapter_model",
    "ipAdapters": "ip_adapter_model",
}


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata. ValueError."""
    if "invokeai_metadata" not in texts:
        return None
    table = json_table(texts["invokeai_metadata"])
    handled = ("refiner_start", "strength", "init_image", "generation_mode", *UNITS)
    parsed = from_table(table, FIELDS, *handled)
    _add_picture(parsed, str(table.get("generation_mode")), table.get("init_image"), table)
    for name in ("model", "vae"):
        if value := model_name(table.get(name)):
            parsed.values[name] = value
    loras = [lora for lora in list_in(table, "loras") if isinstance(lora, dict)]
    if loras:
        parsed.values["loras"] = [
            {"name": model_name(lora.get("model", lora.get("lora"))), "unet": lora.get("weight")}
            for lora in loras
        ]
    add_refiner(parsed.values, table, "refiner_start")
    units = [*_units(table)]
    if units:
        parsed.values.update(unit_fields(units, parsed.notes))
    skipped = parsed.values.pop("clip_skip", None)
    if isinstance(skipped, int) and skipped:
        parsed.values["clip_skip"] = skipped + 1  # there 0 is none, elsewhere 1
    parsed.values["compat"] = "invokeai"
    split_karras(parsed.values)
    return parsed


def _units(table: Table) -> Iterator[Table]:
    """Its ControlNets, T2I-Adapters and IP-Adapters as units of A1111; maps are those it made."""
    for kind, model in UNITS.items():
        for one in (one for one in list_in(table, kind) if isinstance(one, dict)):
            picture = table_in(one, "processed_image") or table_in(one, "image")
            weight = one.get("control_weight", one.get("weight", 1.0))
            yield {
                "module": "ip-adapter" if kind == "ipAdapters" else "none",
                "model": model_name(one.get(model)),
                "image": {"name": picture.get("image_name", UNNAMED)},
                "weight": weight[0] if isinstance(weight, list) and weight else weight,
                "guidance_start": one.get("begin_step_percent", 0),
                "guidance_end": one.get("end_step_percent", 1),
                "control_mode": one.get("control_mode"),
                "resize_mode": one.get("resize_mode"),
            }


def _add_picture(parsed: ParsedMetadata, mode: str, picture: object, table: Table) -> None:
    """Add what a picture began from, if its mode is not text alone: the name may be missing."""
    if picture or re.search("img2img|inpaint|outpaint", mode):
        parsed.values["image"] = picture or UNNAMED
        parsed.values["strength"] = table.get("strength", 0.75)
    if re.search("inpaint|outpaint", mode):
        parsed.values["mask"] = UNNAMED
