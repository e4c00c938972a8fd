"""SwarmUI's metadata: the object `sui_image_params` of a JSON text."""

from collections.abc import Mapping

from txt2img.images.metadata.parsed import (
    ParsedMetadata,
    file_stem,
    from_table,
    list_in,
    number,
    table_in,
    written_json,
)
from txt2img.request.input_image import UNNAMED

FIELDS = {
    "negativeprompt": "negative",
    "cfgscale": "cfg",
    "scheduler": "schedule",
    "variationseed": "subseed",
    "variationseedstrength": "subseed_strength",
    **{name: name for name in ("prompt", "model", "seed", "steps", "sampler", "vae")},
    **{name: name for name in ("width", "height")},
}
OWN = (
    "loraweights",
    "refinermodel",
    "refinercontrolpercentage",
    "refinercontrol",
    "clipstopatlayer",
    *("initimage", "initimagecreativity", "maskimage"),
)


def read(texts: Mapping[str, str]) -> ParsedMetadata | None:
    """The metadata, known by the object's name."""
    table = table_in(written_json(texts), "sui_image_params")
    if not table:
        return None
    parsed = from_table(table, FIELDS, *OWN)
    weights = [*map(number, list_in(table, "loraweights"))]
    loras = list_in(table, "loras")
    if loras:
        weights += [1.0] * (len(loras) - len(weights))
        parsed.values["loras"] = [
            {"name": name, "unet": weight} for name, weight in zip(loras, weights, strict=False)
        ]
    if table.get("refinermodel"):
        parsed.values["refiner"] = {"name": file_stem(table["refinermodel"])}
        share = number(table.get("refinercontrolpercentage", table.get("refinercontrol", 0.2)))
        if isinstance(share, int | float):
            parsed.values["refiner_switch"] = round(1 - share, 6)
    if "initimage" in table or "initimagecreativity" in table:  # the picture itself is left out
        parsed.values["image"] = UNNAMED
        parsed.values["strength"] = table.get("initimagecreativity", 0.6)
    if "maskimage" in table:
        parsed.values["mask"] = UNNAMED
    layer = number(table.get("clipstopatlayer"))
    if isinstance(layer, int) and layer < -1:
        parsed.values["clip_skip"] = -layer
    parsed.values["compat"] = "comfyui"  # it draws with ComfyUI
    return parsed
