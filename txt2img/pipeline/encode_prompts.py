"""Prompts → the conditions of each step, encoded once a text."""

import functools
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from txt2img.diffusion.conditioning import Cond, ScheduledCond
from txt2img.pipeline.estimates import activations
from txt2img.request import Request, prompt_syntax
from txt2img.request.compat import Rules
from txt2img.system.device.memory import oom_as_error
from txt2img.weights.apply_adapters import apply_adapters
from txt2img.weights.model import Model

CACHE_SIZE = 8  # conditions a model keeps: texts come again in a sweep, or for other seeds


def encode_prompts(
    model: Model, requests: Sequence[Request], rules: Rules
) -> list[tuple[ScheduledCond, ...]]:
    """Apply LoRAs and embeddings, and encode each image's prompts; negatives come last.

    BadRequest, OutOfMemory.
    """
    first, placement = requests[0], model.memory.placement
    keys, cache = [cache_key(model, r, rules) for r in requests], model.prompt_cache
    conds = {key: cache.pop(key) for key in dict.fromkeys(keys) if key in cache}
    missing = {k: request for k, request in zip(keys, requests, strict=True) if k not in conds}
    with oom_as_error("the prompts"):
        apply_adapters(model, first)
        with (
            placement.using("text", model.text, partial(text_bytes, model))
            if missing
            else nullcontext()
        ):
            conds |= {key: encode(model, request, rules) for key, request in missing.items()}
    cache |= conds
    for key in list(cache)[:-CACHE_SIZE]:
        del cache[key]
    return [conds[key] for key in keys]


def text_bytes(model: Model) -> int:
    """Estimated bytes that encoding a prompt takes besides weights."""
    itemsize = next(model.text.parameters()).dtype.itemsize
    return activations.of_texts(model.family.texts, itemsize)


def cache_key(model: Model, request: Request, rules: Rules) -> Hashable:
    """All that a request's conditions depend on."""
    cfg = request.cfg if model.family.network.embeds_cfg else None
    numbers = request.steps, request.width, request.height, cfg
    adapters = request.loras, request.embeddings
    prompts = request.prompt, request.negative, has_guidance(model, request, rules)
    return *prompts, request.guidance, *numbers, *adapters, rules


def has_guidance(model: Model, request: Request, rules: Rules) -> bool:
    """Whether a request's negative prompt is looked at: not at cfg 1, nor by an LCM.

    Prompts that AND joins are always weighed against it.
    """
    alone = [weight for weight, _ in and_parts(request, rules)] == [1.0]
    return not alone or (request.cfg != 1 and not model.family.network.embeds_cfg)


def encode(model: Model, request: Request, rules: Rules) -> tuple[ScheduledCond, ...]:
    """Encode a request's prompts over the steps, each with a batch of 1; the negative comes last.

    There are several before it where AND joins them, all of them equally long. A negative that is
    not looked at is not encoded: the prompt stands in its place.
    """
    text, reading = model.text, rules.prompt
    schedules = schedules_of(request, rules)
    counts = [
        max(text.chunk_count(part, reading) for _, part in schedule) for schedule in schedules
    ]
    if not rules.no_padding:
        counts = [max(counts)] * len(counts)
    longest = max(counts[:-1])
    length = model.clips[0].config.length if model.clips else 0  # of a chunk; others have one

    @functools.cache  # a prompt that alternates comes again
    def positive(part: str, chunks: int) -> Cond:
        cond = text.encode([part], chunks, reading)
        cond = cond.padded_to(cond.tokens.shape[1] + (longest - chunks) * length)
        return with_sizes(cond, model, request, True)

    @functools.cache
    def negative(part: str, chunks: int) -> Cond:
        negative_rules = reading if rules.skip_negative else replace(reading, clip_skip=1)
        cond = text.encode([part], chunks, negative_rules)
        if model.family.zero_empty_negative and rules.zero_empty_negative and not request.negative:
            cond = cond.zeroed()
        return with_sizes(cond, model, request, False)

    encoders = [positive] * (len(schedules) - 1) + [negative]
    rows = list(zip(schedules, counts, encoders, strict=True))
    if not has_guidance(model, request, rules):
        rows[-1] = rows[0]  # in the negative's place, which a large encoder would take seconds for
    return tuple(
        [(until, one(part, chunks)) for until, part in schedule] for schedule, chunks, one in rows
    )


def schedules_of(request: Request, rules: Rules) -> list[list[tuple[int, str]]]:
    """The texts of a request's prompts over the steps, each with its last one; the negative last.

    Several come before it where AND joins them.
    """
    prompts = [prompt for _, prompt in and_parts(request, rules)] + [request.negative]
    if not rules.prompt_editing:
        return [[(1, prompt)] for prompt in prompts]
    steps, strict = request.steps or 1, rules.strict_edits
    return [list(prompt_syntax.schedule(prompt, steps, strict)) for prompt in prompts]


def and_parts(request: Request, rules: Rules) -> list[tuple[float, str]]:
    """The prompts that AND joins in a request's, each with its weight."""
    if not rules.prompt_editing:
        return [(1.0, request.prompt)]
    return prompt_syntax.split_and(request.prompt, rules.trailing_weight)


def with_sizes(cond: Cond, model: Model, request: Request, is_positive: bool) -> Cond:
    """The condition with the numbers that a family is told: sizes, the guidance scale."""
    family, device = model.family, cond.tokens.device
    if family.network.embeds_cfg:
        cond = replace(cond, guidance=torch.tensor([(request.cfg or 0.0) - 1], device=device))
    if family.network.embeds_guidance:
        scale = torch.tensor([request.guidance or 0.0], device=device)
        cond = replace(cond, guidance=scale)
    sizes = family.size_ids(request.height or 0, request.width or 0, is_positive)
    return replace(cond, size_ids=torch.tensor([sizes], device=device)) if sizes else cond
