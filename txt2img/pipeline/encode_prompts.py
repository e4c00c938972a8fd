"""A request's prompts → the conditions that a model is told at each step."""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import torch

from txt2img.diffusion.conditioning import Cond, ScheduledCond
from txt2img.request import prompt_syntax
from txt2img.request.compat import rules
from txt2img.request.request import Request
from txt2img.system.device.memory import oom_as_error
from txt2img.weights.apply_adapters import apply_adapters
from txt2img.weights.families import Family
from txt2img.weights.model import Model

CACHE_SIZE = (
    8  # as many conditions a model remembers: texts come again in a sweep, or for other seeds
)


def encode_prompts(model: Model, requests: Sequence[Request]) -> list[tuple[ScheduledCond, ...]]:
    """Each picture's conditions, once the model wears what is asked for; a text is encoded once.

    BadRequest, OutOfMemory.
    """
    first, worn, placement = requests[0], model.adapters, model.memory.placement
    keys = [cache_key(model, request) for request in requests]
    found = {
        key: model.prompt_cache.pop(key) for key in dict.fromkeys(keys) if key in model.prompt_cache
    }
    new = {key: r for key, r in zip(keys, requests, strict=True) if key not in found}
    changes = (first.loras, first.embeddings) != (worn.loras, worn.embeddings)
    at_hand = placement.materialised(model.text) if new or changes else nullcontext()
    with oom_as_error("the prompts"), at_hand:
        apply_adapters(model, first)
        with placement.using("text", model.text) if new else nullcontext():
            found |= {key: encode(model, request) for key, request in new.items()}
    model.prompt_cache |= found
    for key in list(model.prompt_cache)[:-CACHE_SIZE]:
        del model.prompt_cache[key]
    return [found[key] for key in keys]


def cache_key(model: Model, request: Request) -> Hashable:
    """All that a request's conditions depend on."""
    told = request.cfg if model.family.network.scale_width else None
    shape = request.steps, request.width, request.height, told
    clothes = request.loras, request.embeddings
    return request.prompt, request.negative, *shape, *clothes, rules(request)


def encode(model: Model, request: Request) -> tuple[ScheduledCond, ...]:
    """The conditions of all prompts over the steps, each of a batch of 1; the negative comes last.

    There are several before it where AND joins them, all of them equally long.
    """
    found = rules(request)
    reading, silent = found.prompt, model.family.silent and found.zero_empty_negative
    over = [(text, True) for _, text in and_parts(request)] + [(request.negative, False)]
    courses = [
        prompt_syntax.schedule(text, request.steps or 1) if found.prompt_editing else [(1, text)]
        for text, _ in over
    ]
    counts = [max(model.text.chunks(text, reading) for _, text in course) for course in courses]
    if not found.no_padding:
        counts = [max(counts)] * len(counts)

    @cache  # a prompt that takes turns comes again
    def cond(text: str, chunks: int, wanted: bool) -> Cond:
        whole = not wanted and not found.skip_negative
        how = replace(reading, clip_skip=1) if whole else reading
        said = model.text.encode([text], chunks, how)
        if silent and not wanted and not request.negative:
            said = said.zeroed()
        longest = max(counts[:-1]) if wanted else chunks
        length = said.tokens.shape[1] // chunks * longest
        return with_sizes(said.padded_to(length), model.family, request, wanted)

    return tuple(
        [(until, cond(text, chunks, wanted)) for until, text in course]
        for course, chunks, (_, wanted) in zip(courses, counts, over, strict=True)
    )


def and_parts(request: Request) -> list[tuple[float, str]]:
    """The prompts that AND joins in a request's, each with its weight."""
    found = rules(request)
    if not found.prompt_editing:
        return [(1.0, request.prompt)]
    return prompt_syntax.split_and(request.prompt, found.trailing_weight)


def prompt_weights(request: Request) -> list[float]:
    """The weights of the prompts that are drawn at once."""
    return [weight for weight, _ in and_parts(request)]


def with_sizes(cond: Cond, family: Family, request: Request, wanted: bool) -> Cond:
    """The condition with what a family is told in numbers: sizes, how strongly it is guided."""
    if family.network.scale_width:
        scale = torch.tensor([(request.cfg or 0.0) - 1], device=cond.tokens.device)
        cond = replace(cond, guidance=scale)
    sizes = family.sizes(request.height or 0, request.width or 0, wanted)
    if not sizes:
        return cond
    return replace(cond, size_ids=torch.tensor([sizes], device=cond.tokens.device))
