"""A1111's API in prompt files: the names and values of a txt2img or img2img call, as fields.

Source: modules/api/models.py and processing.py. Pictures may be paths, data URLs or base64.
"""

import base64
import binascii
import re
from collections.abc import Mapping, MutableMapping
from hashlib import sha256

from txt2img.errors import BadRequest
from txt2img.request.a1111_units import unit_fields
from txt2img.request.fields import FIELDS
from txt2img.request.input_image import ImageRef
from txt2img.system.text import shown

Values = dict[str, object]
EMBEDDED = "picture-"  # begins the name of a picture that a line holds
BASE64_MIN = 200  # characters; what is shorter is a path
# Keys that decide nothing here, with any value, or with these.
NEUTRAL: Mapping[str, tuple[object, ...] | None] = {
    **dict.fromkeys(
        (
            *("send_images", "save_images", "do_not_save_samples", "do_not_save_grid"),
            *("include_init_images", "override_settings_restore_afterwards", "force_task_id"),
            *("infotext", "comments", "s_min_uncond", "s_tmin", "s_tmax", "s_noise"),
            *("firstphase_width", "firstphase_height", "seed_enable_extras", "init_latent"),
        )
    ),
    "restore_faces": (False,),
    "styles": ([],),
    "script_name": ("",),
    "script_args": ([],),
    "override_settings": ({},),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "s_churn": (0,),
    "disable_extra_networks": (False,),
    "initial_noise_multiplier": (1, 0),
    "latent_mask": ("",),
    "mask_round": (True,),
    "enable_hr": (False,),
}
RENAMED = {"sampler_index": "sampler", "scheduler": "schedule"}
SECOND_PASS = {
    "hr_scale": "hires",
    "hr_resize_x": "hires_width",
    "hr_resize_y": "hires_height",
    "hr_second_pass_steps": "hires_steps",
    "hr_upscaler": "hires_upscaler",
}


def from_api(
    values: Values, options: Mapping[str, str], contents: MutableMapping[str, bytes]
) -> Values:
    """A line's values by the names of fields; `options` has other programs' spellings of them.

    Pictures inside the line become `contents`, by the names that the fields then have. Names that
    are unknown stay, to be refused. BadRequest.
    """
    values = {name: value for name, value in values.items() if not _is_neutral(name, value)}
    settings = values.pop("override_settings", {})
    if not isinstance(settings, dict):
        raise BadRequest(f"override_settings is an object, got {shown(settings)}")
    for name, field in (
        ("CLIP_stop_at_last_layers", "clip_skip"),
        ("eta_noise_seed_delta", "ensd"),
    ):
        if name in settings:
            values[field] = settings.pop(name)
    values |= {name: value for name, value in settings.items() if name != "sd_model_checkpoint"}
    if "sampler_name" in values:
        values.pop("sampler_index", None)  # its former name, which A1111 then ignores
    for convert in (_second_pass, _area, _blur, _first_picture):
        convert(values)
    values = _controls(values, contents) | values
    named: Values = {}
    for name, value in values.items():
        field = name if name in FIELDS else options.get(f"--{name.replace('_', '-')}", name)
        field = RENAMED.get(name, field)
        if name == "times":  # the field that batch_size becomes
            raise BadRequest(f"no request has a field {shown(name)}")
        if field == "schedule" and str(value).lower() == "automatic":
            continue
        if field in named:
            raise BadRequest(f"{field} and {name} are the same; give one of them")
        named[field] = value
    for name in ("image", "mask"):
        if isinstance(value := named.get(name), str):
            named[name] = picture(value, contents)
    return named


def _is_neutral(name: str, value: object) -> bool:
    """Whether a value asks for nothing: A1111's null is its default."""
    if name in FIELDS:
        return False
    allowed = NEUTRAL.get(name, ())
    return value is None or allowed is None or any(value == one for one in allowed)


def _second_pass(values: Values) -> None:
    """Name the second pass's settings, which a call may have without asking for one."""
    on = values.pop("enable_hr", False)
    given = {name: values.pop(name) for name in [*values] if name.startswith("hr_")}
    if not on:
        return
    for name, value in given.items():
        if value not in (0, "", None):
            values[SECOND_PASS.get(name, name)] = value
    if "denoising_strength" in values:
        values["hires_strength"] = values.pop("denoising_strength")


def _area(values: Values) -> None:
    """Join the two settings of the area that is repainted."""
    if "inpaint_full_res" in values:
        padding = values.pop("inpaint_full_res_padding", 0)
        values["only_masked"] = padding if values.pop("inpaint_full_res") else None


def _blur(values: Values) -> None:
    """Join the blurs across and down."""
    blurs = {values.pop(name) for name in ("mask_blur_x", "mask_blur_y") if name in values}
    if len(blurs) > 1:
        raise BadRequest("mask_blur_x and mask_blur_y differ; masks are blurred alike both ways")
    if blurs:
        values["mask_blur"] = blurs.pop()


def _first_picture(values: Values) -> None:
    """The one picture of a list."""
    pictures = values.pop("init_images", [])
    if not isinstance(pictures, list) or len(pictures) > 1:
        raise BadRequest(f"init_images is a list of one picture, got {shown(pictures)}")
    if pictures:
        if "image" in values:
            raise BadRequest("image and init_images are the same; give one of them")
        values["image"] = pictures[0]


def _controls(values: Values, contents: MutableMapping[str, bytes]) -> Values:
    """Take the ControlNet extension's units out, as fields. BadRequest for other extensions.

    A unit without a picture follows the one that img2img begins from.
    """
    scripts, init = values.pop("alwayson_scripts", {}), values.get("image")
    if not isinstance(scripts, dict):
        raise BadRequest(f"alwayson_scripts is an object, got {shown(scripts)}")
    units: list[Values] = []
    for name, script in scripts.items():
        given = script.get("args", []) if isinstance(script, dict) else None
        if name.lower() != "controlnet" or not isinstance(given, list):
            raise BadRequest(f"alwayson_scripts: {shown(name)} is none that is known")
        units += [dict(unit) for unit in given if isinstance(unit, dict)]
    for number, unit in enumerate(units):
        for old, new in (("input_image", "image"), ("guidance", "guidance_end")):
            unit.setdefault(new, unit.get(old, unit.get(new)))
        image = unit["image"]
        image = image.get("image") if isinstance(image, dict) else image
        image = image or init  # webuiapi sends "" for none
        if image is None and unit.get("enabled", True) and "model" in unit:
            raise BadRequest(f"ControlNet {number} has no image")
        unit["image"] = picture(image, contents) if isinstance(image, str) else image
        for name in ("guidance_end", "image"):
            if unit[name] is None:
                del unit[name]
    notes: list[str] = []
    fields = unit_fields(units, notes)
    if notes:
        raise BadRequest(notes[0])
    if "resize_mode" in values:  # the call's, of all its pictures
        fields.pop("resize", None)
    return fields


def picture(text: str, contents: MutableMapping[str, bytes]) -> ImageRef:
    """A picture by its path, or from a data URL or base64, which then is one of `contents`."""
    match = re.match(r"data:[\w/+.;=-]*,", text)
    encoded = text[match.end() :] if match else text
    if match is None and len(text) < BASE64_MIN:
        return ImageRef(text)
    try:
        content = base64.b64decode(re.sub(r"\s", "", encoded), validate=True)
    except (binascii.Error, ValueError) as error:
        if match is None:
            return ImageRef(text)  # a long path, or nothing
        raise BadRequest(f"a picture's data URL is not base64: {error}") from None
    name = f"{EMBEDDED}{sha256(content).hexdigest()[:12]}"
    contents[name] = content
    return ImageRef(name)
