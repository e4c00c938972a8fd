"""Whose rules a picture is drawn by, as data: their noise, weights, times and first step.

The facts are those of A1111 1.10.1, ComfyUI 0.3.64, diffusers 0.40, stable-diffusion.cpp (2026).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from txt2img.request.prompt_syntax import Grammar
from txt2img.request.request import Request
from txt2img.request.sampler_names import Compat, Sampler, Schedule

Emphasis = Literal["restore", "from_empty"]
Source = str  # "cpu": torch's generator on the processor; "nv", "nv:N": Nvidia's Philox


@dataclass(frozen=True)
class Reading:
    """How a prompt becomes chunks of tokens and their states."""

    grammar: Grammar = "a1111"
    emphasis: Emphasis = "restore"  # the chunk's mean, or from the empty prompt's states
    backtrack: int = 0  # tokens that a full chunk may give back, to end in a comma
    cut: bool = False  # what does not fit in one chunk is left out
    clip_skip: int = 1


@dataclass(frozen=True)
class Rules:
    """One program's rules."""

    reading: Reading = Reading()
    first: Source = "cpu"  # the noise that a picture starts from
    later: Source | None = None  # that of its steps, of a generator of its own; None: the first's
    delta: int = 0  # what the seed of that generator is more
    path: Literal["own", "tree"] | None = None  # what SDE solvers draw from: brownian.py's
    unit: frozenset[Sampler] = frozenset()  # the samplers that start from noise of spread 1
    unit_if_leading: bool = False  # and all with the schedule leading
    unit_if_top: bool = False  # and all that start at the noisiest entry
    changes: bool = False  # prompts may change over the steps, and AND joins several
    late: bool = False  # such a change comes a step late
    suffix: bool = False  # a number at a prompt's end is its weight, AND or not
    whole_times: frozenset[Sampler] = frozenset()  # the samplers whose times are rounded
    without_penultimate: frozenset[Sampler] = frozenset()
    old_ddim: bool = False  # DDIM stops at the table's second entry
    skip_negative: bool = True  # the clip skip holds for the negative prompt too
    own_lengths: bool = False  # a short prompt gets no empty chunks for the sake of a long one
    silent: bool = True  # an empty negative prompt is zeros where the family learned so


EVERY = frozenset(Sampler)
# modules/rng.py: a generator a picture. sd_samplers_timesteps.py: DDIM, UniPC start unscaled.
# prompt_parser.py: reconstruct_cond_batch counts calls from 0, steps from 1. sd_emphasis.py:
# EmphasisOriginal. sd_hijack_clip.py: comma_padding_backtrack 20.
A1111 = Rules(
    reading=Reading(backtrack=20),
    path="tree",  # modules/sd_samplers_kdiffusion.py: of the seed alone, without ENSD
    unit=frozenset({Sampler.DDIM, Sampler.UNIPC}),
    changes=True,
    late=True,
    suffix=True,
    old_ddim=True,
    own_lengths=True,  # sd_samplers_cfg_denoiser.py: two passes, unless "Pad conds" is said
)
# scheduling_*_discrete.py: init_noise_sigma is 1 but for the slope samplers, whose is
# √(σ² + 1) only for leading; DPM++ 2M and UniPC round the times of karras sigmas.
DIFFUSERS = Rules(
    reading=Reading("text", cut=True),
    skip_negative=False,  # pipeline_stable_diffusion.py: encode_prompt
    unit=frozenset(sampler for sampler in Sampler if not sampler.sigma_start),
    unit_if_leading=True,
    whole_times=frozenset({Sampler.DPMPP_2M, Sampler.DPMPP_2M_SDE, Sampler.UNIPC}),
)
RULES: Mapping[Compat | None, Rules] = {
    None: Rules(changes=True, path="own"),
    Compat.A1111: A1111,
    Compat.A1111_GPU: replace(A1111, first="nv"),
    # backend/modules/k_prediction.py: the nearest entry's time.
    Compat.FORGE: replace(A1111, first="nv", whole_times=EVERY),
    # comfy/sample.py prepare_noise: on the processor. k_diffusion/sampling.py: steps draw on the
    # latent's device, Nvidia's here. model_sampling.py: noise_scaling's max_denoise, integer
    # timestep(). sd1_clip.py: weights. samplers.py: DISCARD_PENULTIMATE_SIGMA_SAMPLERS.
    Compat.COMFYUI: Rules(
        reading=Reading("comfyui", "from_empty"),
        later="nv",
        path="tree",  # cpu=True: of the first noise's source
        unit_if_top=True,
        whole_times=EVERY,
        without_penultimate=frozenset({Sampler.UNIPC}),
        own_lengths=True,  # conds.py: repeated as a whole, which changes nothing
        silent=False,
    ),
    Compat.DIFFUSERS: DIFFUSERS,
    # rng_philox.hpp is the default generator, conditioner.hpp weights as A1111's.
    Compat.SDCPP: Rules(first="nv", own_lengths=True),
    # Its weights are compel's, which are not drawn here: (word)1.2 is text.
    Compat.INVOKEAI: DIFFUSERS,
    # A1111 reads its pictures with ENSD 31337 (infotext_utils.py); clip skip comes in the record.
    Compat.NOVELAI: replace(A1111, first="nv", delta=31337),
}


def rules(request: Request) -> Rules:
    """The rules that a request asks for."""
    return _rules(request.compat, request.clip_skip or 1, request.ensd, request.rng)


@lru_cache(maxsize=64)
def _rules(compat: Compat | None, clip_skip: int, ensd: int | None, rng: Source | None) -> Rules:
    found = RULES[compat]
    found = replace(found, reading=replace(found.reading, clip_skip=clip_skip))
    if ensd is not None:
        found = replace(found, delta=ensd)
    if rng is None:
        return found
    first, _, later = rng.partition(",")
    if later:
        return replace(found, first=first, later=later)
    # Who draws on the processor first and on the card later says which card.
    return replace(found, later=rng) if found.later else replace(found, first=rng)


def plainest(request: Request) -> Request:
    """The request without what changes nothing: the same one for all that draw the same so."""
    source = None if request.rng is None else request.rng.partition(",")[0]
    for name, values in {"rng": (None, source), "ensd": (None,), "clip_skip": (None,)}.items():
        for value in values if getattr(request, name) is not None else ():
            change: dict[str, Any] = {name: value}
            other = replace(request, **change)
            if rules(other) == rules(request):
                request = other
                break
    if not request.subseed_strength and request.subseed is not None:
        request = replace(request, subseed=None)
    return request


def unit(found: Rules, request: Request, top: bool) -> bool:
    """Whether a picture starts from noise of spread 1, not of its first level's sigma.

    `top` tells that this level is the noisiest of the model's table.
    """
    leading = found.unit_if_leading and request.schedule is Schedule.LEADING
    return request.sampler in found.unit or leading or (found.unit_if_top and top)


def whole_times(found: Rules, request: Request) -> bool:
    """Whether the network is told whole times."""
    return request.sampler in found.whole_times
