"""Models distilled to few steps: told by a scheduler's config or a name, and drawn as they want.

Nothing in such a model's weights shows it, and drawn with the defaults of the model it was made
from it gives burnt or blurred pictures.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from txt2img.request import Defaults, Sampler, Schedule


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
KINDS = (DMD, LCM, HYPER, LIGHTNING, TURBO, MIXED)
SCHEDULERS = {"LCMScheduler": LCM, "TCDScheduler": HYPER}
LCM_SCALE = 8.0  # of networks that are told it; the others were distilled at one and take none
STEPS = re.compile(r"(?<!\d)(\d{1,2})[ _-]?steps?")


def by_name(defaults: Defaults, name: str) -> Defaults:
    """The defaults of a model of that name: other ones where it tells of few steps."""
    words = re.sub(r"[^a-z0-9.]", "", name.lower())
    found = next((kind for kind in KINDS if re.search(kind.pattern, words)), None)
    if found is None:
        return defaults
    said = STEPS.search(name.lower())
    steps = int(said[1]) if said else None
    if found is HYPER and steps is not None and steps > 1:
        found = HYPER_STEPS
    return _drawn(defaults, found, steps)


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
