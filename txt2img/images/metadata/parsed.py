"""Metadata of another program, parsed: values for a Request's fields, and notes on the rest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from txt2img.system.files import parse_json
from txt2img.system.text import shown

Table = Mapping[str, object]
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{0,30})?", re.ASCII)

# Settings of any of these programs that decide a picture, and that a Request has no field for.
UNSUPPORTED = (
    *("sm", "sm_dyn", "strength", "image", "init_image", "init_image_strength"),
    *("controlnets", "ipAdapters", "t2iAdapters", "hrf_enabled", "hires_fix", "seamless"),
    *("seamless_x", "seamless_y", "refiner_steps", "variations", "perlin"),
    *("threshold", "sharpness", "styles", "adm_guidance", "mask_prompt", "fix_faces", "upscale"),
    *("upscale_amount", "use_face_correction", "use_upscale", "prompt_expansion", "tile_mode"),
    *("control_inputs", "inpaint_method", "performance", "generation_mode", "characterPrompts"),
)
NOTES_MAX = 20
EMPTY_VALUES: tuple[object, ...] = (None, "", 0, "txt2img", "None", "none", [], {}, "[]")


@dataclass(frozen=True)
class ParsedMetadata:
    """Values for a Request's fields, as the program means them, and what is not carried over."""

    values: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def from_table(table: Table, names: Mapping[str, str]) -> ParsedMetadata:
    """The settings that have a field, by `names`; each unsupported one gets a note."""
    values = {field: table[name] for name, field in names.items() if table.get(name) is not None}
    lost = [name for name in UNSUPPORTED if name in table and table[name] not in EMPTY_VALUES]
    notes = [f"{name} {shown(table[name], 40)} is not carried over" for name in lost]
    return ParsedMetadata(values, notes)


def cap(notes: list[str]) -> list[str]:
    """The first notes, and how many more there are."""
    more = len(notes) - NOTES_MAX
    return [*notes[:NOTES_MAX], f"and {more} more"] if more > 0 else notes


def python_json(text: str) -> object:
    """A JSON value as Python programs write it: NaN becomes null. ValueError."""
    return parse_json(re.sub(r"(?<=[\[,:])(\s*)NaN(?=\s*[\],}])", r"\1null", text))


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
