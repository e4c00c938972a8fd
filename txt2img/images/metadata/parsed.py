"""Metadata of another program, parsed: values for a Request's fields, and notes on the rest."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from txt2img.errors import BadRequest
from txt2img.request import Request
from txt2img.system.files import parse_json
from txt2img.system.text import escape, shown

Table = Mapping[str, object]
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?", re.ASCII)

# Settings that decide nothing in any of these programs: other words for what is drawn, its origin,
# how it was saved and shown. Every other setting without a field is told.
NEUTRAL = (
    *("version", "app_version", "swarm_version", "metadata_scheme", "created_by", "model_hash"),
    *("base_model_hash", "loras", "lora_hashes", "signed_hash", "request_type", "rand_device"),
    *("n_samples", "num_outputs", "images", "aspectratio", "automaticvae", "original_prompt"),
    *("full_prompt", "full_negative_prompt", "caption_text", "prompt", "resolution", "size"),
    *("model", "vae", "refiner_model", "used_random_seed", "type", "output_type", "aspect_ratio"),
    *("stream_progress_updates", "stream_image_progress", "show_only_filtered_image"),
    *("output_format", "output_quality", "output_lossless", "metadata_output_format"),
    *("active_tags", "inactive_tags", "save_to_disk_path", "session_id", "request_id"),
    *("vram_usage_level", "block_nsfw", "Software", "Title", "is_intermediate", "orig_hash"),
    *("workflow", "canvas_v2_metadata", "dynamic_thresholding_percentile"),
    *("dynamic_thresholding_mimic_scale", "hide_debug_overlay", "add_original_image"),
    *("extra_noise_seed", "controlnet_strength", "legacy_uc", "legacy", "_type", "sui_extra_data"),
)
NO_VAE = ("", "None", "none", "Automatic", "Default (model)")  # the model's own
NOTES_MAX = 20
EMPTY_VALUES: tuple[object, ...] = (
    *(None, "", 0, "txt2img", "None", "none", "False", "false", [], {}, "[]"),
)


@dataclass(frozen=True)
class ParsedMetadata:
    """Values for a Request's fields, as the program means them, and what is not carried over."""

    values: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hash: str = ""  # of the model, if it is one of A1111's


def from_table(table: Table, names: Mapping[str, str], *read: str) -> ParsedMetadata:
    """The settings that have a field, by `names`; a note for each other that may decide something.

    `read` are the names of those that the caller reads itself.
    """
    values = {field: table[name] for name, field in names.items() if table.get(name) is not None}
    known = {*names, *read, *NEUTRAL}
    notes = [
        f"{escape(name)[:40]} {shown(value, 40)} is not carried over"
        for name, value in table.items()
        if name not in known and value not in EMPTY_VALUES
    ]
    return ParsedMetadata(values, notes)


def accepted(values: Mapping[str, object], notes: list[str]) -> dict[str, object]:
    """The values that a Request takes; the others, also single LoRAs and words, become notes."""
    taken: dict[str, object] = {}
    for name, value in values.items():
        if name in ("loras", "embeddings", "controls", "ip_adapters") and isinstance(value, list):
            taken[name] = [item for item in value if _accepts(name, [item], notes)]
        elif _accepts(name, value, notes):
            taken[name] = value
    return taken


def _accepts(name: str, value: object, notes: list[str]) -> bool:
    try:
        Request.from_json({"prompt": "", name: value})
    except BadRequest as error:
        notes.append(f"{error}; left to the model")
        return False
    return True


def cap(notes: list[str]) -> list[str]:
    """The first notes, and how many more there are."""
    hidden = len(notes) - NOTES_MAX
    return [*notes[:NOTES_MAX], f"and {hidden} more"] if hidden > 0 else notes


def python_json(text: str) -> object:
    """A JSON value as Python programs write it: NaN becomes null. ValueError."""
    return parse_json(re.sub(r"(?<=[\[,:])(\s*)NaN(?=\s*[\],}])", r"\1null", text))


def written_json(texts: Mapping[str, str]) -> Table:
    """The JSON object in `parameters` or in EXIF's comment; empty if there is none."""
    for text in (texts.get("parameters", ""), texts.get("UserComment", "")):
        if text.startswith("{"):  # a prompt may begin so too
            with suppress(ValueError):
                return json_table(text)
    return {}


def json_table(text: str) -> Table:
    """The JSON object that a text is. ValueError."""
    return json_object(python_json(text))


def json_object(value: object) -> dict[str, object]:
    """A JSON value that must be an object. ValueError."""
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def number(value: object) -> object:
    """The number that a text is, a whole one as an integer; all else as it is."""
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return value
    return float(value) if "." in value else int(value)


def table_in(table: Table, name: str) -> Table:
    """An object inside another; empty if there is none."""
    value = table.get(name)
    return value if isinstance(value, dict) else {}


def list_in(table: Table, name: str) -> list[object]:
    """A list inside an object; empty if there is none."""
    value = table.get(name)
    return value if isinstance(value, list) else []


def model_name(value: object) -> object:
    """The name of a model, which may be an object."""
    if isinstance(value, dict):
        return value.get("name", value.get("model_name"))
    return value


def file_stem(value: object) -> object:
    """The name in a file's path, of any system, without its suffix: it leads nowhere."""
    if not isinstance(value, str):
        return value
    last = re.split(r"[\\/]", value)[-1]
    return re.sub(r"\.(safetensors|ckpt|pt|bin)$", "", last)


def add_refiner(values: dict[str, object], table: Table, switch: str) -> None:
    """Add the refiner, if one was used, and the time of its start, which has the name `switch`."""
    name = model_name(table.get("refiner_model"))
    if name not in EMPTY_VALUES:
        values["refiner"] = {"name": file_stem(name)}
        if table.get(switch) is not None:
            values["refiner_switch"] = table[switch]


def split_karras(values: dict[str, object]) -> None:
    """Split a name such as dpmpp_2m_k into a sampler and Karras' schedule."""
    sampler = values.get("sampler")
    if isinstance(sampler, str) and sampler.endswith("_k"):
        values.update(sampler=sampler[:-2], schedule="karras")
