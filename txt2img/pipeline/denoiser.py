"""A model and what it is told → a denoiser of pictures that are drawn together.

On a CPU every picture goes through the networks by itself, so that its bits do not depend on the
pictures beside it; on other devices a batch is one pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, pairwise

import torch
from torch import Tensor

from txt2img.diffusion.conditioning import CondAt, ScheduledCond, batched_conds, over_time
from txt2img.diffusion.deepcache import DeepCache
from txt2img.diffusion.guidance import Denoise, GuidanceScale, Predictor, multi_guided
from txt2img.diffusion.levels import Level, Process
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.pipeline.encode_prompts import prompt_weights
from txt2img.request.compat import rules
from txt2img.request.request import Request
from txt2img.system.device.memory import free, is_oom
from txt2img.weights.families import Family
from txt2img.weights.model import Model, device_of

PIECEMEAL = "Out of memory while drawing: one picture at a time, in two passes a step"


def denoiser(
    model: Model,
    requests: Sequence[Request],
    conds: Sequence[tuple[ScheduledCond, ...]],
    levels: Sequence[Level],
    device: torch.device,
) -> Denoise:
    """What tells x0 of pictures that are drawn together: picture by picture on a CPU."""
    request = requests[0]
    found, kind = rules(request), PREDICTIONS[model.family.prediction]
    network = model.graphed if device == device_of(model) else None
    process = model.family.process.build()
    predict = Predictor(
        network or model.network, process, kind, request.sampler in found.integer_times
    )
    scale = guidance_scale(model.family, request, process)

    def look(part: slice, together: bool = True) -> Denoise:
        together = (
            together and len({length for pair in conds[part] for length in lengths(pair)}) == 1
        )
        parts = [
            (weight, side(part, i)) for i, weight in enumerate(prompt_weights(requests[part][0]))
        ]
        its = predict
        if request.reuse > 1:
            its = replace(predict, deepcache=DeepCache(request.reuse, levels))
        return multi_guided(its, parts, side(part, -1), scale, together, request.cfg_rescale)

    def side(part: slice, which: int) -> CondAt:
        courses = [[(until, c.on(device)) for until, c in pair[which]] for pair in conds[part]]
        return batched_conds(
            *(over_time(course, levels, found.edits_one_step_late) for course in courses)
        )

    singles = [slice(i, i + 1) for i in range(len(conds))]
    parts = singles if device.type == "cpu" else equal_length_runs(conds, requests)
    fast = split_batch([(part, look(part)) for part in parts])
    slow = split_batch([(part, look(part, together=False)) for part in singles])
    return with_oom_fallback(fast, slow, model.memory.warn)


def guidance_scale(family: Family, request: Request, process: Process) -> GuidanceScale:
    """How strongly each level is guided; where not at all, by 1.

    Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval": at much noise guidance
    costs variety, at little it does nothing.
    """
    scale, interval = request.cfg or 0.0, request.cfg_interval
    if family.network.scale_width:  # such a network guides itself
        return 1.0
    if interval is None:
        return scale

    def at(level: Level) -> float:
        part = 1 - process.time(level) / (process.steps - 1)
        return scale if min(max(part, 0.0), 1.0) in interval else 1.0

    return at


def equal_length_runs(
    conds: Sequence[tuple[ScheduledCond, ...]], requests: Sequence[Request]
) -> list[slice]:
    """The longest runs of equally long conditions with the same weights: each fits in one batch."""
    rows = zip(conds, requests, strict=True)
    groups = groupby(rows, key=lambda row: (lengths(row[0]), prompt_weights(row[1])))
    ends = [0]
    for _, group in groups:
        ends.append(ends[-1] + len(list(group)))
    return [slice(start, end) for start, end in pairwise(ends)]


def lengths(courses: Sequence[ScheduledCond]) -> list[int]:
    """The tokens of each prompt of a picture: those of a course have equally many."""
    return [course[0][1].tokens.shape[1] for course in courses]


def split_batch(parts: Sequence[tuple[slice, Denoise]]) -> Denoise:
    """One denoiser of several, each for its part of the batch; together they are all of it."""
    if len(parts) == 1:
        return parts[0][1]
    return lambda x, level: torch.cat([denoise(x[part], level) for part, denoise in parts])


def with_oom_fallback(fast: Denoise, slow: Denoise, tell: Callable[[str], None]) -> Denoise:
    """`fast` until memory is short, from then on `slow`, which is told."""
    short = False

    def denoise(x: Tensor, level: Level) -> Tensor:
        nonlocal short
        if not short:
            try:
                return fast(x, level)
            except (RuntimeError, MemoryError) as error:
                if not is_oom(error):
                    raise
                short = True
                tell(PIECEMEAL)
        free()
        return slow(x, level)

    return denoise
