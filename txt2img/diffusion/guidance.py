"""From networks to denoisers: the cast between dtypes, classifier-free guidance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import torch
from torch import Tensor

from txt2img.diffusion.conditioning import Cond, CondAt, batched_conds
from txt2img.diffusion.deepcache import DeepCache, FeatureCache
from txt2img.diffusion.levels import Level, Process
from txt2img.diffusion.predictions import Prediction
from txt2img.errors import BadRequest

Denoise = Callable[[Tensor, Level], Tensor]  # x, level → x0
# x, times, level, condition, whether deep features are cached → the condition with residuals
Control = Callable[[Tensor, Tensor, Level, Cond, bool], Cond]
Mix = Callable[[Tensor, Tensor, float, Level], Tensor]  # negative's x0, prompt's, scale → x0
GuidanceScale = float | Callable[[Level], float]  # one for all levels, or each its own


class Network(Protocol):
    """(x (B, C, H, W), time (B,), cond) → (B, C, H, W), in the dtype of its parameters."""

    def __call__(self, x: Tensor, time: Tensor, cond: Cond, cache: FeatureCache = ..., /) -> Tensor:
        """Raw network output. Reads DeepCache features from `cache`, or fills it."""

    def parameters(self) -> Iterator[Tensor]:
        """Its weights."""


@dataclass(frozen=True)
class Predictor:
    """A network as `(x, level, cond) → x0`, float32 whatever the network's dtype."""

    network: Network
    process: Process
    prediction: Prediction
    whole_times: bool = False  # round the times that the network sees
    deepcache: DeepCache | None = None  # for one picture, or several that are always in one batch
    control: Control | None = None

    def output(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """Raw network output for x (B, C, H, W), cond (N·B): (N·B, C, H, W), float32."""
        dtype, broadcasts = self._dtype_and_sharing
        if not broadcasts:
            x = x.repeat(len(cond.tokens) // len(x), 1, 1, 1)
        time = self.process.time(level)
        if self.whole_times:
            time = float(round(time))
        times = torch.full((len(x),), time, device=x.device)
        features = () if self.deepcache is None else (self.deepcache.at(level, cond),)
        x, cond = x.to(dtype), cond.to(dtype)
        if self.control is not None:
            is_cached = any(one.features is not None for one in features)
            cond = self.control(x, times, level, cond, is_cached)
        return self.network(x, times, cond, *features).float()

    @cached_property
    def _dtype_and_sharing(self) -> tuple[torch.dtype, bool]:
        """dtype, cached since finding it walks all modules; whether latents may be fewer than
        conditions."""
        dtype = next(iter(self.network.parameters())).dtype
        return dtype, getattr(self.network, "broadcasts_latents", False)

    def __call__(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """x0 (B, C, H, W), float32."""
        return self.prediction.x0(x, self.output(x, level, cond), level)


@dataclass(frozen=True)
class SkipGuidance:
    """Guidance away from the prompt's output of a weaker network: without some layers, say.

    Stability AI 2024, Stable Diffusion 3.5 medium. `predict` is that network.
    """

    predict: Predictor
    positive: CondAt
    scale: float
    active: Callable[[Level], bool]

    def apply(self, out: Tensor, towards: Tensor, x: Tensor, level: Level) -> Tensor:
        """Move an output away; `towards` is the whole network's for the prompt."""
        if not self.active(level):
            return out
        without = self.predict.output(x, level, self.positive(level))
        return torch.add(out, towards - without, alpha=self.scale)

    def apply_x0(self, x0: Tensor, towards: Tensor, x: Tensor, level: Level) -> Tensor:
        """As `apply`, of clean pictures."""
        if not self.active(level):
            return x0
        without = self.predict(x, level, self.positive(level))
        return torch.add(x0, towards - without, alpha=self.scale)


def outputs_by_cond(
    predict: Predictor, conds: Sequence[CondAt], batched: bool
) -> Callable[[Tensor, Level], Sequence[Tensor]]:
    """Network outputs (B, C, H, W), one a condition: of one pass if `batched`, or a pass each."""
    batch = batched_conds(*conds)

    def outputs(x: Tensor, level: Level) -> Sequence[Tensor]:
        if batched:
            return predict.output(x, level, batch(level)).chunk(len(conds))
        return [predict.output(x, level, cond(level)) for cond in conds]

    return outputs


class Unguided:
    """The negative's prediction at levels that ask for it: those of CFG++ samplers.

    They ask directly after the guided prediction, whose output for the negative is kept till then.
    """

    def __init__(self, predict: Predictor, negative: CondAt) -> None:
        self._predict, self._negative = predict, negative
        self._kept: tuple[Tensor, Tensor, float] | None = None

    def keep(self, x: Tensor, away: Tensor, level: Level) -> None:
        """Keep the negative's output for x at a level."""
        self._kept = x, away, level.ratio

    def x0(self, x: Tensor, level: Level) -> Tensor:
        """The prediction without guidance; a pass more if nothing is kept of this level."""
        kept, self._kept = self._kept, None
        if kept is None or kept[2] != level.ratio:
            return self._predict(x, level, self._negative(level))
        return self._predict.prediction.x0(*kept[:2], level)


def guided(
    predict: Predictor,
    positive: CondAt,
    negative: CondAt,
    scale: GuidanceScale,
    batched: bool = True,
    rescale: float = 0.0,
    skip: SkipGuidance | None = None,
    mix: Mix | None = None,
) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022): away from negative, `scale` times.

    An evaluation is one pass of 2B, two of B unless `batched`, or one of B where the scale is 1.
    Network outputs are mixed and rescaled (by `rescale`, 0 to 1), not x0, as in diffusers; `mix`
    is another way to mix, of x0.
    """
    outputs = outputs_by_cond(predict, [negative, positive], batched)
    unguided = Unguided(predict, negative)

    def denoise(x: Tensor, level: Level) -> Tensor:
        if not level.guided:
            return unguided.x0(x, level)
        times = scale(level) if callable(scale) else scale
        if times == 1 and (skip is None or not skip.active(level)):
            return predict(x, level, positive(level))
        away, towards = outputs(x, level)
        unguided.keep(x, away, level)
        if mix is not None:
            of_prompt = predict.prediction.x0(x, towards, level)
            x0 = mix(predict.prediction.x0(x, away, level), of_prompt, times, level)
            return x0 if skip is None else skip.apply_x0(x0, of_prompt, x, level)
        out = rescaled(torch.add(away, towards - away, alpha=times), towards, rescale)
        out = out if skip is None else skip.apply(out, towards, x, level)
        return predict.prediction.x0(x, out, level)

    return denoise


def multi_guided(
    predict: Predictor,
    parts: Sequence[tuple[float, CondAt]],
    negative: CondAt,
    scale: GuidanceScale,
    batched: bool = True,
    rescale: float = 0.0,
    skip: SkipGuidance | None = None,
    mix: Mix | None = None,
) -> Denoise:
    """Guidance by several prompts: away from negative, `scale` times each one's weight, summed.

    Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models", equation
    11. One prompt of weight 1 is `guided`. `rescale` goes by the weighted mean of the prompts.
    BadRequest for several with a `mix`.
    """
    weights = [weight for weight, _ in parts]
    if weights == [1.0]:
        return guided(predict, parts[0][1], negative, scale, batched, rescale, skip, mix)
    if mix is not None:
        raise BadRequest("--apg and --dynamic-thresholding take one prompt, without AND")
    total = sum(map(abs, weights))
    outputs = outputs_by_cond(predict, [negative, *(cond for _, cond in parts)], batched)
    unguided = Unguided(predict, negative)

    def denoise(x: Tensor, level: Level) -> Tensor:
        if not level.guided:
            return unguided.x0(x, level)
        times = scale(level) if callable(scale) else scale
        away, *texts = outputs(x, level)
        unguided.keep(x, away, level)
        weighted = list(zip(weights, texts, strict=True))
        out = away + times * sum(weight * (towards - away) for weight, towards in weighted)
        if total:
            mean = sum(abs(weight) * towards for weight, towards in weighted) / total
            out = rescaled(out, torch.as_tensor(mean), rescale)
        out = out if skip is None else skip.apply(out, texts[0], x, level)
        return predict.prediction.x0(x, out, level)

    return denoise


def image_guided(
    predict: Predictor,
    parts: Sequence[tuple[float, CondAt]],
    negative: CondAt,
    blind: CondAt,
    image_scale: float,
    scale: GuidanceScale,
    batched: bool = True,
    rescale: float = 0.0,
) -> Denoise:
    """Guidance by prompts and a picture: three passes, or more with several prompts.

    Brooks et al. 2023, "InstructPix2Pix: Learning to Follow Image Editing Instructions", equation
    3. `negative` sees the picture, `blind` does not.
    """
    weights = [weight for weight, _ in parts]
    conds = [blind, negative, *(cond for _, cond in parts)]
    outputs = outputs_by_cond(predict, conds, batched)
    unguided = Unguided(predict, blind)

    def denoise(x: Tensor, level: Level) -> Tensor:
        if not level.guided:
            return unguided.x0(x, level)
        times = scale(level) if callable(scale) else scale
        nothing, picture, *texts = outputs(x, level)
        unguided.keep(x, nothing, level)
        out = nothing + image_scale * (picture - nothing)
        for weight, text in zip(weights, texts, strict=True):
            out = out + times * weight * (text - picture)
        return predict.prediction.x0(x, rescaled(out, texts[0], rescale), level)

    return denoise


def switch(
    first: Denoise, make_second: Callable[[], Denoise], later: Callable[[Level], bool]
) -> Denoise:
    """Denoise by `first` until a level is `later`, then by a second, made on its first use."""
    second = cache(make_second)
    return lambda x, level: (second() if later(level) else first)(x, level)


def rescaled(out: Tensor, towards: Tensor, share: float) -> Tensor:
    """Restore a `share` of the contrast of `towards` in `out` (Lin et al. 2023, §3.4).

    Both are network outputs, (B, C, H, W): on x0 the factor would be another one.
    """
    if not share:
        return out
    axes = (1, 2, 3)
    back = towards.std(axes, keepdim=True) / out.std(axes, keepdim=True)
    return out * (share * back + 1 - share)
