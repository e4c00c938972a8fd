"""What a model or a LoRA draws best with: as it says itself, or as one distilled to few steps.

Nothing in such a one's weights shows that, but a scheduler's config or a name does; and drawn with
the defaults of the model it was made from it gives burnt or blurred pictures.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from txt2img.errors import BadFile, BadRequest
from txt2img.request import Defaults, Request, Sampler, Schedule
from txt2img.request.resolve import AdapterPaths
from txt2img.system.files import parse_object
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.json_values import Config, number, whole


@dataclass(frozen=True)
class Kind:
    """A way of distilling, how its models' names say so, and what they draw best with."""

    pattern: str  # in a name in small letters without signs, where "N" is a number of steps
    steps: int  # where the name says no other
    cfg: float
    sampler: Sampler
    schedule: Schedule
    side: int | None = None  # pixels, where it differs from the family's


TURBO = Kind(r"sd(xl)?turbo", 4, 1.0, Sampler.EULER_A, Schedule.TRAILING, 512)
LCM = Kind(r"(?<![a-z])lcm|lcm(?![a-z])", 4, 1.0, Sampler.LCM, Schedule.TRAILING)
HYPER = Kind(r"hyper(sd|xl|vae|\d|$)|tcd(?![a-z])", 8, 1.0, Sampler.TCD, Schedule.TRAILING)
# Those distilled for one number of steps above 1 want no fresh noise between them.
HYPER_STEPS = replace(HYPER, sampler=Sampler.DDIM)
LIGHTNING = Kind(r"lightning\D*\dsteps?", 4, 1.0, Sampler.EULER, Schedule.TRAILING)
# Others' mixtures with one of them: softer, so they take some guidance and a few more steps.
MIXED = Kind(r"turbo|lightning", 8, 2.0, Sampler.DPMPP_SDE, Schedule.KARRAS)
DMD = Kind(r"dmd2", 4, 1.0, Sampler.LCM, Schedule.TRAILING)
OF_LORAS = (DMD, LCM, HYPER, LIGHTNING, TURBO)  # a style's LoRA may be called turbo, too
KINDS = (*OF_LORAS, MIXED)
SAID = "txt2img"  # where a LoRA's file says it, as JSON like a model's txt2img.json
SOME = Defaults(512, 512, 30, 5.0, Sampler.DPMPP_2M, Schedule.KARRAS)  # of a model to be adapted
SCHEDULERS = {"LCMScheduler": LCM, "TCDScheduler": HYPER}
LCM_SCALE = 8.0  # of networks that are told it; the others were distilled at one and take none
DRAWN = ("steps", "cfg", "sampler", "schedule")  # what few steps need; sizes are the model's
STEPS = re.compile(r"(?<!\d)(\d{1,2})[ _-]?steps?")


def by_name(defaults: Defaults, name: str, kinds: Sequence[Kind] = KINDS) -> Defaults:
    """The defaults of a model of that name: other ones where it tells of few steps."""
    words = re.sub(r"[^a-z0-9.]", "", name.lower())
    found = next((kind for kind in kinds if re.search(kind.pattern, words)), None)
    if found is None:
        return defaults
    count = STEPS.search(name.lower())
    steps = int(count[1]) if count else None
    if found is HYPER and steps is not None and steps > 1:
        found = HYPER_STEPS
    if "cfg" in words:  # distilled so that it still takes guidance
        found = replace(found, cfg=defaults.cfg)
    return _drawn(defaults, found, steps)


def by_loras(request: Request, library: AdapterPaths) -> Request:
    """The request with its blanks as its first LoRA of few steps wants them, if it has one.

    Raises ModelNotFound, BadFile.
    """
    blanks = [name for name in DRAWN if getattr(request, name) is None]
    for lora in request.loras if blanks else ():
        path = library.lora_file(lora.name)
        changed = path.stat().st_mtime_ns if path.exists() else 0
        if lora.unet and (drawn := of_lora(path, lora.name, changed)):
            return request.with_json({name: drawn[name] for name in blanks if name in drawn})
    return request


@lru_cache(maxsize=64)
def of_lora(path: Path, name: str, changed: int) -> Mapping[str, object]:
    """What a LoRA, last `changed` then and called so, wants of DRAWN; nothing by most. BadFile."""
    metadata = safetensors_file.header(path).metadata
    if SAID in metadata:
        config = parse_object(metadata[SAID].encode("utf-8", "replace"), path.name)
        drawn = said(config, SOME, path.name)
        return {field: getattr(drawn, field) for field in DRAWN if field in config}
    named = (by_name(SOME, text, OF_LORAS) for text in (name, path.stem))
    drawn = next((found for found in named if found != SOME), SOME)
    values = {field: getattr(drawn, field) for field in DRAWN}
    return {field: value for field, value in values.items() if value != getattr(SOME, field)}


def said(config: Config, usual: Defaults, where: str) -> Defaults:
    """What a model draws best with: as its file `where` says, else as usual. BadFile."""
    try:
        return Defaults(
            width=whole(config, "width", usual.width, 8, 8192),
            height=whole(config, "height", usual.height, 8, 8192),
            steps=whole(config, "steps", usual.steps, 1, 10_000),
            cfg=number(config, "cfg", usual.cfg),
            sampler=Sampler.parse(str(config.get("sampler", usual.sampler))),
            schedule=Schedule.parse(str(config.get("schedule", usual.schedule))),
        )
    except BadRequest as error:
        raise BadFile(f"{where}: {error}") from error


def by_scheduler(defaults: Defaults, config: Mapping[str, object], name: str) -> Defaults:
    """The defaults of a folder: as its scheduler says, else as its name does.

    Euler at trailing steps of a model that predicts noise is how Turbo models are published.
    """
    kind = SCHEDULERS.get(str(config.get("_class_name")))
    trailing = config.get("timestep_spacing") == "trailing"
    euler = str(config.get("_class_name")).startswith("Euler")
    noise = config.get("prediction_type", "epsilon") == "epsilon"
    if kind is None and trailing and euler and noise:
        kind = replace(TURBO, side=None)  # the U-Net's config says for which size it is
    return by_name(defaults, name) if kind is None else _drawn(defaults, kind, None)


def told(defaults: Defaults) -> Defaults:
    """The defaults of a latent consistency model that is told how strongly it is guided."""
    return replace(_drawn(defaults, LCM, None), cfg=LCM_SCALE)


def _drawn(defaults: Defaults, kind: Kind, steps: int | None) -> Defaults:
    return replace(
        defaults,
        width=kind.side or defaults.width,
        height=kind.side or defaults.height,
        steps=steps or kind.steps,
        cfg=kind.cfg,
        sampler=kind.sampler,
        schedule=kind.schedule,
    )
