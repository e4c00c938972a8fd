"""A refiner: a model that takes over from another for the last steps (Podell et al. 2023, §2.5).

It continues with the same latents and levels, but encodes the prompt with its own text encoders.
LoRAs and embeddings apply to the first model only.
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
from txt2img.weights.checkpoint import open_checkpoint
from txt2img.weights.families import Family
from txt2img.weights.load import build_empty, load_weights
from txt2img.weights.model import Model, SecondStage
from txt2img.weights.registry.hashes import hash_in_background


def add_refiner(model: Model, name: str, device: Device) -> None:
    """Load a refiner for a model, which shares its VAE.

    Raises as `load` does, BadRequest if the two do not have the same latents.
    """
    checkpoint = open_checkpoint(name)
    _check_same_latents(checkpoint.name, checkpoint.family, model.family)
    device = replace(device, offload=model.memory.placement.mode)
    with hash_in_background(checkpoint.weights) as digest:
        refiner = build_empty(checkpoint, device, model.vae)
        refiner.memory = model.memory
        load_weights(refiner, device)
        refiner.hash = digest()
    model.refiner = SecondStage(Refiner(refiner.name, refiner.hash), refiner)


def without_adapters(requests: Sequence[Request]) -> list[Request]:
    """The requests for the refiner itself, which has no adapters and no ControlNets."""
    none = {"refiner": None, "loras": (), "embeddings": (), "vae": None}
    return [r.changed(**none, controls=(), ip_adapters=(), ip_masks=()) for r in requests]


def is_refiner_step(process: Process, level: Level, switch: float) -> bool:
    """Whether the refiner takes the step from a level.

    It does once the fraction `switch` of the training timesteps is over, as in A1111 and diffusers.
    """
    return round(process.time(level)) < round(process.steps * (1 - switch))


def refiner_of(model: Model) -> Model:
    """The model's refiner. Raises BadRequest if it has none."""
    if model.refiner is None:
        raise BadRequest("the picture was drawn with a refiner; give it with --refiner")
    return model.refiner.model


def _check_same_latents(name: str, family: Family, first: Family) -> None:
    """Raise BadRequest unless a model can continue with another's latents."""
    if family.extra_inputs:
        raise BadRequest(
            f"{shown(name)} needs {family.extra_inputs} in addition to the prompt: it is no refiner"
        )
    one, other = first.vae, family.vae
    sizes = (one.latent_channels, one.factor), (other.latent_channels, other.factor)
    scales = isclose(one.scaling, other.scaling, rel_tol=1e-3) and isclose(one.shift, other.shift)
    if sizes[0] != sizes[1] or not scales or first.process.kind != family.process.kind:
        raise BadRequest(
            f"{shown(name)} ({family.name}) cannot refine what a model of {first.name} draws: "
            "their latents differ"
        )
