"""What other programs than A1111 write into their pictures, read as a Request.

Whatever a file says is a value for one of the Request's fields, which checks it, or a remark.
Names of files keep their last part only, so that none leads anywhere.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from txt2img.errors import BadRequest
from txt2img.images.metadata import comfyui, novelai
from txt2img.images.metadata.a1111_versions import NO_RULES
from txt2img.request.request import Request
from txt2img.system.files import parse_json
from txt2img.system.text import shown

REMARKS_MAX = 20
Table = Mapping[str, object]

# Their names for a Request's fields.
NOVELAI = {
    **{name: name for name in ("steps", "seed", "sampler", "width", "height", "cfg_rescale")},
    "scale": "cfg",
    "uc": "negative",
    "noise_schedule": "schedule",
}
INVOKEAI = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative",
    "cfg_scale": "cfg",
    "cfg_rescale_multiplier": "cfg_rescale",
    "scheduler": "sampler",
    "clip_skip": "clip_skip",
    **{name: name for name in ("width", "height", "seed", "steps")},
}
INVOKEAI_2 = {
    **{name: name for name in ("steps", "width", "height", "seed", "sampler")},
    "cfg_scale": "cfg",
}
FOOOCUS = {
    "negative_prompt": "negative",
    "guidance_scale": "cfg",
    "base_model": "model",
    **{name: name for name in ("prompt", "steps", "seed", "sampler")},
    "scheduler": "schedule",
}
IMAGINAIRY = {
    "prompt_text": "prompt",
    "negative_prompt": "negative",
    "prompt_strength": "cfg",
    **{name: name for name in ("prompt", "seed", "steps", "width", "height")},
    "sampler_type": "sampler",
    "solver_type": "sampler",
    "model_weights": "model",
    "model": "model",
}
EASY_DIFFUSION = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "guidance_scale": "cfg",
    "seed": "seed",
    "num_inference_steps": "steps",
    "sampler_name": "sampler",
    "width": "width",
    "height": "height",
    "use_stable_diffusion_model": "model",
    "use_vae_model": "vae",
}
# What they say that decides something, and that a Request has no word for.
LOST = (
    *("sm", "sm_dyn", "strength", "image", "init_image", "init_image_strength"),
    *("controlnets", "ipAdapters", "t2iAdapters", "hrf_enabled", "hires_fix", "seamless"),
    *("seamless_x", "seamless_y", "refiner_steps", "variations", "perlin"),
    *("threshold", "sharpness", "styles", "adm_guidance", "mask_prompt", "fix_faces", "upscale"),
    *("upscale_amount", "use_face_correction", "use_upscale", "prompt_expansion", "tile_mode"),
    *("control_inputs", "inpaint_method", "performance", "generation_mode", "characterPrompts"),
)
WITHOUT_RULES = ("Easy Diffusion", "imaginAIry")
USUAL: tuple[object, ...] = (None, "", 0, "txt2img", "None", "none", [], {}, "[]")


@dataclass(frozen=True)
class Found:
    """What a program says of a picture: values for a Request's fields, and what else there is."""

    program: str
    values: dict[str, object]
    remarks: list[str] = field(default_factory=list)


def read(texts: Mapping[str, str]) -> Found | None:
    """What the texts of a picture say, if they are a known program's. ValueError."""
    if "invokeai_metadata" in texts:
        return _invokeai(_table(texts["invokeai_metadata"]))
    if "sd-metadata" in texts:
        return _invokeai_2(_table(texts["sd-metadata"]))
    if texts.get("Software") == "NovelAI" and "Comment" in texts:
        return _novelai(_table(texts["Comment"]), texts.get("Description", ""))
    if texts.get("parameters", "").startswith("{"):
        return _fooocus(_table(texts["parameters"]))
    for key in ("prompt", "workflow"):
        if texts.get(key, "").startswith("{"):
            graph = comfyui.read(parse_json(_finite(texts[key])))
            return Found("ComfyUI", {**graph.values, "compat": "comfyui"}, graph.remarks)
    if "num_inference_steps" in texts and "prompt" in texts:
        return _taken("Easy Diffusion", texts, EASY_DIFFUSION)
    if texts.get("UserComment", "").startswith("{"):
        return _imaginairy(_table(texts["UserComment"]))
    return None


def to_request(found: Found) -> tuple[Request, list[str]]:
    """The request of what was found, and a remark for each thing that cannot be done."""
    remarks = [*found.remarks]
    kept: dict[str, object] = {"prompt": ""}
    for name, value in found.values.items():
        try:
            value = FORMS.get(name, _as_is)(value)
            Request.from_json({"prompt": "", name: value})
        except BadRequest as error:
            remarks.append(f"{error}; left to the model")
        else:
            kept[name] = value
    if len(remarks) > REMARKS_MAX:
        remarks[REMARKS_MAX:] = [f"and {len(remarks) - REMARKS_MAX} things more"]
    return Request.from_json(kept), remarks


def _novelai(said: Table, description: str) -> Found:
    found = _taken("NovelAI", said, NOVELAI)
    found.values["prompt"] = said.get("prompt", description)
    found.values["compat"] = "novelai"
    found.values.setdefault("clip_skip", 2)  # as A1111 reads its pictures
    if found.values.get("schedule") == "native":
        del found.values["schedule"]  # the model's own
    for name in ("prompt", "negative"):
        words = found.values.get(name)
        if isinstance(words, str):
            found.values[name] = novelai.in_a1111s_words(words)
            if novelai.emphasized(words):
                found.remarks.append(f"the {{emphasis}} of its {name} is written as (weights:1.05)")
    return found


def _invokeai(said: Table) -> Found:
    found = _taken("InvokeAI", said, INVOKEAI)
    found.values["compat"] = "invokeai"
    model, vae = said.get("model"), said.get("vae")
    for name, value in (("model", _model_name(model)), ("vae", _model_name(vae))):
        if value:
            found.values[name] = value
    loras = said.get("loras")
    listed = [one for one in (loras if isinstance(loras, list) else []) if isinstance(one, dict)]
    if listed:
        found.values["loras"] = [
            {"name": _model_name(one.get("model", one.get("lora"))), "unet": one.get("weight")}
            for one in listed
        ]
    _add_refiner(found.values, said, "refiner_start")
    skipped = found.values.pop("clip_skip", None)
    if isinstance(skipped, int) and skipped:
        found.values["clip_skip"] = skipped + 1  # there 0 is none, elsewhere 1
    _split_karras(found.values)
    return found


def _invokeai_2(said: Table) -> Found:
    image = said.get("image")
    image = image if isinstance(image, dict) else {}
    found = _taken("InvokeAI", image, INVOKEAI_2)
    words = image.get("prompt")
    if isinstance(words, list):
        words = " ".join(str(w.get("prompt", "")) for w in words if isinstance(w, dict))
    if isinstance(words, str):
        unwanted = re.findall(r"\[([^\[\]]*)\]", words)  # there brackets are what is not wanted
        found.values["prompt"] = re.sub(r"\s*\[[^\[\]]*\]", "", words).strip()
        found.values["negative"] = ", ".join(unwanted)
    found.values.update(model=said.get("model_weights", ""), compat="invokeai")
    _split_karras(found.values)
    return found


def _fooocus(said: Table) -> Found:
    found = _taken("Fooocus", said, FOOOCUS)
    size = re.fullmatch(r"\(?(\d{1,6}), ?(\d{1,6})\)?", str(said.get("resolution", "")))
    if size:
        found.values.update(width=size[1], height=size[2])
    loras = said.get("loras")
    rows = loras if isinstance(loras, list) else []
    listed = [one for one in rows if isinstance(one, list) and len(one) > 1]
    if listed:
        found.values["loras"] = [{"name": n, "unet": w} for n, w, *_ in listed]
    _add_refiner(found.values, said, "refiner_switch")
    found.values["compat"] = "comfyui"  # whose code it draws with
    return found


def _imaginairy(said: Table) -> Found | None:
    inner = said.get("prompt")
    if not isinstance(inner, dict):
        return None
    size = inner.get("size")
    found = _taken("imaginAIry", inner, IMAGINAIRY)
    if isinstance(size, list) and len(size) == 2:
        found.values.update(width=size[0], height=size[1])
    for name in ("prompt", "negative"):
        parts = found.values.get(name)
        if isinstance(parts, list):
            texts = [str(part.get("text", "")) for part in parts if isinstance(part, dict)]
            found.values[name] = ", ".join(texts)
            if any(
                isinstance(part, dict) and part.get("weight") not in (1, None) for part in parts
            ):
                found.remarks.append(f"the weights of its {name}'s parts are not carried over")
    model = found.values.get("model")
    if isinstance(model, dict):
        found.values["model"] = model.get("name", "")
    return found


def _taken(program: str, said: Table, names: Mapping[str, str]) -> Found:
    """The values that have a field, and a remark for each other one that decides something."""
    values = {wanted: said[name] for name, wanted in names.items() if said.get(name) is not None}
    lost = [name for name in LOST if name in said and said[name] not in USUAL]
    remarks = [f"{name} {shown(said[name], 40)} is not carried over" for name in lost]
    if program in WITHOUT_RULES:
        remarks.append(NO_RULES.format(f"by {program}"))
    return Found(program, values, remarks)


def _add_refiner(values: dict[str, object], said: Table, switch: str) -> None:
    """The refiner that they say and, under that name, when it took over; if there was one."""
    name = _model_name(said.get("refiner_model"))
    if name not in USUAL:
        values["refiner"] = {"name": file_stem(name)}
        if said.get(switch) is not None:
            values["refiner_switch"] = said[switch]


def _split_karras(values: dict[str, object]) -> None:
    """Take apart names like dpmpp_2m_k: a sampler and Karras' schedule."""
    sampler = values.get("sampler")
    if isinstance(sampler, str) and sampler.endswith("_k"):
        values.update(sampler=sampler[:-2], schedule="karras")


def _model_name(value: object) -> object:
    if isinstance(value, dict):
        return value.get("name", value.get("model_name"))
    return value


def _table(text: str) -> Table:
    """The JSON object that a text is. ValueError."""
    said = parse_json(_finite(text))
    if not isinstance(said, dict):
        raise ValueError("it is not an object")
    return said


def _finite(text: str) -> str:
    """JSON as Python programs write it, with null for what is no number in any other's eyes."""
    return re.sub(r"(?<=[\[,:])(\s*)NaN(?=\s*[\],}])", r"\1null", text)


def file_stem(value: object) -> object:
    """The name in a file's path, of any system, without what says its kind."""
    if not isinstance(value, str):
        return value
    last = re.split(r"[\\/]", value)[-1]
    return re.sub(r"\.(safetensors|ckpt|pt|bin)$", "", last)


def _number(value: object) -> object:
    """The number that a text is; all else as it is. What is whole is a whole number."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", value, re.ASCII):
        value = float(value) if "." in value else int(value)
    return value


def _sampler(value: object) -> object:
    """A sampler's name without the k-diffusion that some put before it."""
    return re.sub(r"^k_|_gpu$", "", value) if isinstance(value, str) else value


def _loras(value: object) -> object:
    """LoRAs named by their files' names; of those that say one weight, it counts for both."""
    assert isinstance(value, list)
    return [
        {
            "name": file_stem(one["name"]),
            "unet": one["unet"],
            "text": one.get("text", one["unet"]),
        }
        for one in value
    ]


def _vae(value: object) -> object:
    return {"name": value.replace("\\", "/").split("/")[-1]} if isinstance(value, str) else value


def _as_is(value: object) -> object:
    return value


FORMS: Mapping[str, Callable[[object], object]] = {
    "model": file_stem,
    "loras": _loras,
    "vae": _vae,
    "sampler": _sampler,
    **{name: _number for name in ("width", "height", "steps", "cfg", "cfg_rescale", "seed")},
}
