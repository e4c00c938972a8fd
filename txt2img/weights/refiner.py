"""A refiner: a model that takes over from another for the last steps (Podell et al. 2023, §2.5).

It goes on with the same latents and levels, but reads the prompt by itself. LoRAs and learnt words
are the first model's alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isclose

from txt2img.diffusion.levels import Level, Process
from txt2img.errors import BadRequest
from txt2img.request.adapters import Refiner
from txt2img.request.request import Request
from txt2img.system.device.device import Device
from txt2img.system.text import shown
from txt2img.weights.checkpoint import planned
from txt2img.weights.families import Family
from txt2img.weights.load import fill, without_weights
from txt2img.weights.model import Model, SecondStage
from txt2img.weights.registry.hashes import hashed_beside


def add_refiner(model: Model, name: str, device: Device) -> None:
    """Let the model at `name` draw the last steps of what the model begins.

    Raises as `load` does, BadRequest if the two do not draw the same latents.
    """
    plan = planned(name)
    _check_alike(plan.name, plan.family, model.family)
    with hashed_beside(plan.weights) as digest:
        other = without_weights(plan, device, model.vae)
        other.memory = model.memory
        fill(other, device)
        other.hash = digest()
    model.second = SecondStage(Refiner(other.name, other.hash), other)


def alone(requests: Sequence[Request]) -> list[Request]:
    """The requests as the refiner reads them, which wears nothing."""
    return [replace(r, refiner=None, loras=(), embeddings=(), vae=None) for r in requests]


def its_turn(process: Process, level: Level, switch: float) -> bool:
    """Whether the refiner draws the step that leaves a level.

    A part `switch` of the times that the model learned is over then, as A1111 and diffusers count.
    """
    return round(process.time(level)) < round(process.steps * (1 - switch))


def second(model: Model) -> Model:
    """The refiner. BadRequest if there is none."""
    if model.second is None:
        raise BadRequest("the picture was drawn with a refiner; give it with --refiner")
    return model.second.model


def _check_alike(name: str, family: Family, first: Family) -> None:
    """Raise BadRequest unless a model can go on with another's latents."""
    if family.needs:
        raise BadRequest(f"{shown(name)} needs {family.needs} beside the prompt: it is no refiner")
    one, other = first.vae, family.vae
    sizes = (one.latent_channels, one.factor), (other.latent_channels, other.factor)
    scales = isclose(one.scaling, other.scaling, rel_tol=1e-3) and isclose(one.shift, other.shift)
    if sizes[0] != sizes[1] or not scales or first.process.kind != family.process.kind:
        raise BadRequest(
            f"{shown(name)} ({family.name}) cannot refine what a model of {first.name} draws: "
            "their latents differ"
        )
