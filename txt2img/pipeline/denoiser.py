"""A model and conditions → the denoiser of images drawn together, x, level → x0.

On a CPU every image goes through the networks by itself, so that its bits do not depend on the
images next to it; on other devices a batch is one pass.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, groupby, pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from txt2img.diffusion.conditioning import CondAt, ScheduledCond, batched_conds, over_time
from txt2img.diffusion.deepcache import DeepCache
from txt2img.diffusion.guidance import (
    Control,
    Denoise,
    GuidanceScale,
    Mix,
    Predictor,
    SkipGuidance,
    image_guided,
    multi_guided,
)
from txt2img.diffusion.guidance_methods import DynamicThresholding, ProjectedGuidance
from txt2img.diffusion.levels import Level, Process
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.models.perturbed import PerturbedUNet
from txt2img.models.sd3 import SkipLayers
from txt2img.pipeline.encode_prompts import and_parts
from txt2img.request import Request
from txt2img.request.compat import Rules
from txt2img.request.sampling import parse_apg, parse_dynamic_thresholding, parse_seg
from txt2img.system.device.memory import free, is_oom
from txt2img.weights.families import Family
from txt2img.weights.model import Model, device_of

if TYPE_CHECKING:
    from txt2img.models.sd3 import SD3Transformer
    from txt2img.models.unet import UNet

ImageConds = tuple[ScheduledCond, ...]  # of an image's prompts, its negative last
SKIPPING = 0.01, 0.2  # of the steps, between which skip-layer guidance is on
PIECEMEAL = "Out of memory while drawing: one picture at a time, in two passes a step"


def denoiser(
    model: Model,
    requests: Sequence[Request],
    rules: Rules,
    conds: Sequence[ImageConds],
    levels: Sequence[Level],
    device: torch.device,
    extra: Tensor | None = None,  # the images' channels beside the latent's
    control: Control | None = None,
) -> Denoise:
    """Build x, level → x0 for images drawn together: guidance, DeepCache, fallbacks."""
    conds = conds if control is None else with_negatives_marked(conds)
    request, blind = requests[0], list[ImageConds]()
    conds = with_ip_adapters(model, request, rules, conds, len(levels) - 1)
    if extra is not None:
        blind = with_extra(conds, 0 * extra) if model.family.edits else []
        conds = with_extra(conds, extra)
    weights = [[weight for weight, _ in and_parts(request, rules)] for request in requests]

    def cond_at(part: slice, which: int, conds: Sequence[ImageConds] = conds) -> CondAt:
        return batched_over_time([image[which] for image in conds[part]], levels, rules, device)

    def build(part: slice, one_pass: bool = True) -> Denoise:
        cache = DeepCache(request.reuse, levels) if request.reuse > 1 else None
        net = replace(predictor(model, request, rules, device), deepcache=cache, control=control)
        one_pass = one_pass and len(set(chain.from_iterable(map(lengths, conds[part])))) == 1
        positive = [(weight, cond_at(part, i)) for i, weight in enumerate(weights[part][0])]
        negative, scale = cond_at(part, -1), guidance_scale(model.family, request, net.process)
        how = scale, one_pass, request.cfg_rescale or 0.0
        if blind:
            nothing = cond_at(part, -1, blind)
            return image_guided(net, positive, negative, nothing, request.image_cfg, *how)
        skip = away_guidance(model, net, request, positive[0][1], levels)
        return multi_guided(net, positive, negative, *how, skip, mix_of(request, rules))

    singles = [slice(i, i + 1) for i in range(len(conds))]
    parts = singles if device.type == "cpu" else equal_length_runs(conds, weights)
    fast = split_batch([(part, build(part)) for part in parts])
    slow = split_batch([(part, build(part, False)) for part in singles])
    return with_oom_fallback(fast, slow, model.memory.warn)


def predictor(model: Model, request: Request, rules: Rules, device: torch.device) -> Predictor:
    """The network on a device as x, level, condition → x0."""
    network = (model.graphed if device == device_of(model) else None) or model.network
    process, prediction = model.family.process.build(), PREDICTIONS[model.family.prediction]
    return Predictor(network, process, prediction, request.sampler in rules.integer_times)


def mix_of(request: Request, rules: Rules) -> Mix | None:
    """Projected guidance or dynamic thresholding, if it is asked for."""
    if not (request.apg or request.dynamic_thresholding):
        return None
    if request.apg:
        eta, threshold, momentum = parse_apg(request.apg)
        return ProjectedGuidance(eta, threshold, momentum, rules.program == "comfyui")
    return DynamicThresholding(*parse_dynamic_thresholding(request.dynamic_thresholding or ""))


def away_guidance(
    model: Model, predict: Predictor, request: Request, positive: CondAt, levels: Sequence[Level]
) -> SkipGuidance | None:
    """Perturbed-attention, smoothed-energy or skip-layer guidance, if it is asked for.

    The last is for a part of the steps, by their number.
    """
    if request.pag or request.seg:
        scale, sigma = parse_seg(request.seg) if request.seg else (request.pag or 0.0, None)
        weaker = PerturbedUNet(cast("UNet", model.network), sigma)
        weak_predict = replace(predict, network=weaker, deepcache=None)
        return SkipGuidance(weak_predict, positive, scale, lambda level: True)
    if not request.skip_layer_guidance:
        return None
    skipping = SkipLayers(cast("SD3Transformer", model.network), model.family.network.skip_layers)
    ratios, steps = [-level.ratio for level in levels], len(levels) - 1
    start, stop = SKIPPING

    def active(level: Level) -> bool:
        done = max(bisect_right(ratios, -level.ratio), 1) - 1
        return start * steps < done < stop * steps

    weak_predict = replace(predict, network=skipping, deepcache=None)
    return SkipGuidance(weak_predict, positive, request.skip_layer_guidance, active)


def batched_over_time(
    prompts: Sequence[ScheduledCond], levels: Sequence[Level], rules: Rules, device: torch.device
) -> CondAt:
    """The condition of each level: one prompt each of some images, as a batch on a device."""
    on_device = [[(until, cond.on(device)) for until, cond in prompt] for prompt in prompts]
    late = rules.edits_one_step_late
    return batched_conds(*(over_time(prompt, levels, late) for prompt in on_device))


def with_ip_adapters(
    model: Model, request: Request, rules: Rules, conds: Sequence[ImageConds], steps: int
) -> Sequence[ImageConds]:
    """Each image's conditions with what IP-Adapters see, in the steps that ask for them.

    BadFile, MissingWeights, OutOfMemory.
    """
    if not request.ip_adapters:
        return conds
    from txt2img.pipeline.image_prompts import with_image_prompts

    return with_image_prompts(model, request, rules, conds, steps)


def with_extra(conds: Sequence[ImageConds], extra: Tensor) -> list[ImageConds]:
    """Each image's conditions with its extra channels, of (B, C', h, w)."""

    def one(scheduled: ScheduledCond, own: Tensor) -> ScheduledCond:
        return [(until, replace(cond, extra_channels=own)) for until, cond in scheduled]

    parts = zip(conds, extra.split(1), strict=True)
    return [tuple(one(scheduled, own) for scheduled in image) for image, own in parts]


def with_negatives_marked(conds: Sequence[ImageConds]) -> list[ImageConds]:
    """Each image's conditions, its negative's rows marked as such: controls may spare them."""

    def marked(scheduled: ScheduledCond) -> ScheduledCond:
        return [(until, replace(cond, negatives=len(cond.tokens))) for until, cond in scheduled]

    return [(*image[:-1], marked(image[-1])) for image in conds]


def guidance_scale(family: Family, request: Request, process: Process) -> GuidanceScale:
    """The guidance scale of each level: cfg, and 1 outside cfg_interval.

    Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval": at much noise guidance
    costs variety, at little it does nothing.
    """
    scale, interval = request.cfg or 0.0, request.cfg_interval
    if request.sampler is not None:
        scale /= request.sampler.cfg_divisor
    if family.network.embeds_cfg:  # the network guides itself
        return 1.0
    if interval is None:
        return scale

    def at(level: Level) -> float:
        done = 1 - process.time(level) / (process.steps - 1)
        return scale if min(max(done, 0.0), 1.0) in interval else 1.0

    return at


def equal_length_runs(
    conds: Sequence[tuple[ScheduledCond, ...]], weights: Sequence[list[float]]
) -> list[slice]:
    """The longest runs of equally long conditions with the same weights: each fits in one batch."""
    rows = zip(conds, weights, strict=True)
    groups = groupby(rows, key=lambda row: (lengths(row[0]), row[1]))
    ends = list(accumulate((len(list(group)) for _, group in groups), initial=0))
    return [slice(start, end) for start, end in pairwise(ends)]


def lengths(prompts: Sequence[ScheduledCond]) -> list[tuple[tuple[int, int], ...]]:
    """The tokens of each prompt of an image: their numbers, each with its last step.

    CLIP's are equally many at all steps; a language model's prompt is as long as its words.
    """
    return [tuple(_runs(prompt)) for prompt in prompts]


def _runs(prompt: ScheduledCond) -> Iterator[tuple[int, int]]:
    """Numbers of tokens and the last step of each; the last number is for all steps after."""
    rows = [(until, cond.tokens.shape[1]) for until, cond in prompt]
    for (until, count), (_, following) in pairwise(rows):
        if count != following:
            yield count, until
    yield rows[-1][1], 0


def split_batch(parts: Sequence[tuple[slice, Denoise]]) -> Denoise:
    """One denoiser from several, each for its part of the batch."""
    if len(parts) == 1:
        return parts[0][1]
    return lambda x, level: torch.cat([denoise(x[part], level) for part, denoise in parts])


def with_oom_fallback(fast: Denoise, slow: Denoise, warn: Callable[[str], None]) -> Denoise:
    """`fast` until memory runs out, with a warning and `slow` from then on."""
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
                warn(PIECEMEAL)
        free()
        return slow(x, level)

    return denoise
