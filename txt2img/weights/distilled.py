"""Defaults of models and LoRAs that are distilled to few steps, such as Turbo, LCM, Lightning.

Weights do not show it, but a scheduler's config or a name does. With the defaults of the model that
they were distilled from, pictures come out burnt or blurred.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.request import Defaults, Request, Sampler, Schedule
from txt2img.request.adapters import Lora
from txt2img.request.interval import Interval, interval_from_json
from txt2img.request.resolve import AdapterPaths
from txt2img.system.files import parse_object
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.json_values import Config, integer, number


@dataclass(frozen=True)
class Distillation:
    """A method of distillation: how to recognise it in names, and its defaults."""

    pattern: str  # in a name in lower case, without signs
    steps: int  # unless the name has another number
    cfg: float
    sampler: Sampler
    schedule: Schedule
    side: int | None = None  # pixels, if not the family's


TURBO = Distillation(r"sd(xl)?turbo", 4, 1.0, Sampler.EULER_A, Schedule.TRAILING, 512)
LCM = Distillation(r"(?<![a-z])lcm|lcm(?![a-z])", 4, 1.0, Sampler.LCM, Schedule.TRAILING)
HYPER = Distillation(r"hyper(sd|xl|vae|\d|$)|tcd(?![a-z])", 8, 1.0, Sampler.TCD, Schedule.TRAILING)
# Those distilled for a fixed number of steps above 1 need no fresh noise between them.
HYPER_STEPS = replace(HYPER, sampler=Sampler.DDIM)
LIGHTNING = Distillation(r"lightning\D*\dsteps?", 4, 1.0, Sampler.EULER, Schedule.TRAILING)
# Merges with one of them are softer: they take some guidance and a few more steps.
MIXED = Distillation(r"turbo|lightning", 8, 2.0, Sampler.DPMPP_SDE, Schedule.KARRAS)
DMD = Distillation(r"dmd2", 4, 1.0, Sampler.LCM, Schedule.TRAILING)
LORA_KINDS = (DMD, LCM, HYPER, LIGHTNING, TURBO)  # not MIXED: a style's LoRA may be called turbo
KINDS = (*LORA_KINDS, MIXED)
METADATA_KEY = "txt2img"  # of a LoRA's metadata: JSON like a model's txt2img.json
NEUTRAL = Defaults(512, 512, 30, 5.0, Sampler.DPMPP_2M, Schedule.KARRAS)  # of any model
SCHEDULERS = {"LCMScheduler": LCM, "TCDScheduler": HYPER}
LCM_SCALE = 8.0  # of networks with an embedding of it; the others were distilled at one scale
FIELDS = ("steps", "cfg", "sampler", "schedule")  # that a LoRA decides; sizes are the model's
# Fields that turn a model's own few-step LoRA off: a negative prompt does nothing without
# guidance, and img2img needs more steps.
DECISIONS = (
    *("negative", "steps", "cfg", "cfg_rescale", "cfg_interval", "sampler", "schedule", "eta"),
    *("loras", "refiner", "compat", "reuse", "image"),
)
PLAIN = Request("")
STEPS = re.compile(r"(?<!\d)(\d{1,2})[ _-]?steps?")


def from_name(defaults: Defaults, name: str, kinds: Sequence[Distillation] = KINDS) -> Defaults:
    """The defaults of a model whose name tells its distillation; unchanged for other names."""
    words = re.sub(r"[^a-z0-9.]", "", name.lower())
    kind = next((kind for kind in kinds if re.search(kind.pattern, words)), None)
    if kind is None:
        return defaults
    count = STEPS.search(name.lower())
    steps = int(count[1]) if count else None
    if kind is HYPER and steps is not None and steps > 1:
        kind = HYPER_STEPS
    if "cfg" in words:  # distilled without its guidance
        kind = replace(kind, cfg=defaults.cfg)
    return _with_distillation(defaults, kind, steps)


def from_loras(request: Request, library: AdapterPaths, defaults: Defaults) -> Request:
    """The request with its blanks filled by its first few-step LoRA, if it has one.

    A request that leaves all of them to a model with a few-step LoRA of its own gets that one.
    Raises ModelNotFound, BadFile.
    """
    if defaults.lora and all(getattr(request, n) == getattr(PLAIN, n) for n in DECISIONS):
        request = replace(request, loras=(Lora(defaults.lora),))
    blanks = [name for name in FIELDS if getattr(request, name) is None]
    for lora in request.loras if blanks else ():
        path = library.lora_file(lora.name)
        changed = path.stat().st_mtime_ns if path.exists() else 0
        if lora.unet and (defaults_of_lora := lora_defaults(path, lora.name, changed)):
            return request.with_json(
                {name: defaults_of_lora[name] for name in blanks if name in defaults_of_lora}
            )
    return request


@lru_cache(maxsize=64)
def lora_defaults(path: Path, name: str, changed: int) -> Mapping[str, object]:
    """The defaults that a few-step LoRA asks for; empty for other LoRAs. BadFile."""
    metadata = safetensors_file.header(path).metadata
    if METADATA_KEY in metadata:
        config = parse_object(metadata[METADATA_KEY].encode("utf-8", "replace"), path.name)
        defaults = from_file(config, NEUTRAL, path.name)
        return {field: getattr(defaults, field) for field in FIELDS if field in config}
    by_name = (from_name(NEUTRAL, text, LORA_KINDS) for text in (name, path.stem))
    defaults = next((one for one in by_name if one != NEUTRAL), NEUTRAL)
    values = {field: getattr(defaults, field) for field in FIELDS}
    return {field: value for field, value in values.items() if value != getattr(NEUTRAL, field)}


def from_file(config: Config, defaults: Defaults, where: str) -> Defaults:
    """The defaults with the values of a config, whose file is `where`. Raises BadFile."""
    try:
        return Defaults(
            width=integer(config, "width", defaults.width, 8, 8192),
            height=integer(config, "height", defaults.height, 8, 8192),
            steps=integer(config, "steps", defaults.steps, 1, 10_000),
            cfg=number(config, "cfg", defaults.cfg),
            sampler=Sampler.parse(str(config.get("sampler", defaults.sampler))),
            schedule=Schedule.parse(str(config.get("schedule", defaults.schedule))),
            cfg_rescale=number(config, "cfg_rescale", defaults.cfg_rescale),
            cfg_interval=_interval(config, defaults),
            lora=str(config.get("lora", defaults.lora)),
            hires_strength=number(config, "hires_strength", defaults.hires_strength),
        )
    except BadRequest as error:
        raise BadFile(f"{where}: {error}") from error


def _interval(config: Config, defaults: Defaults) -> Interval | None:
    value = config.get("cfg_interval")
    return defaults.cfg_interval if value is None else interval_from_json(value)


def from_scheduler(defaults: Defaults, config: Mapping[str, object], name: str) -> Defaults:
    """The defaults of a folder by its scheduler's config, else by its name.

    Turbo models are published with Euler, trailing timesteps and noise prediction.
    """
    kind = SCHEDULERS.get(str(config.get("_class_name")))
    trailing = config.get("timestep_spacing") == "trailing"
    euler = str(config.get("_class_name")).startswith("Euler")
    noise = config.get("prediction_type", "epsilon") == "epsilon"
    if kind is None and trailing and euler and noise:
        kind = replace(TURBO, side=None)  # the size is in the U-Net's config
    return from_name(defaults, name) if kind is None else _with_distillation(defaults, kind, None)


def for_lcm(defaults: Defaults) -> Defaults:
    """The defaults of a latent consistency model with an embedding of the guidance scale."""
    return replace(_with_distillation(defaults, LCM, None), cfg=LCM_SCALE)


def _with_distillation(defaults: Defaults, kind: Distillation, steps: int | None) -> Defaults:
    return replace(
        defaults,
        width=kind.side or defaults.width,
        height=kind.side or defaults.height,
        steps=steps or kind.steps,
        cfg=kind.cfg,
        sampler=kind.sampler,
        schedule=kind.schedule,
    )
