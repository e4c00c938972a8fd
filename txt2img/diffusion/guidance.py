"""From networks to denoisers: conditions, the cast between dtypes, classifier-free guidance."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Protocol

import torch
from torch import Tensor

from txt2img.diffusion.conditioning import Cond, CondAt
from txt2img.diffusion.deepcache import Kept, Reuse
from txt2img.diffusion.levels import Level, Process
from txt2img.diffusion.predictions import Prediction

Denoise = Callable[[Tensor, Level], Tensor]  # x, level → x0


Scale = float | Callable[[Level], float]  # of the guidance: one for all levels, or each its own


class Network(Protocol):
    """(x (B, C, H, W), time (B,), cond) → (B, C, H, W), in the dtype of its parameters."""

    def __call__(self, x: Tensor, time: Tensor, cond: Cond, kept: Kept = ..., /) -> Tensor:
        """The raw output, by what is kept or where it is kept."""

    def parameters(self) -> Iterator[Tensor]:
        """Its weights."""


@dataclass(frozen=True)
class Predictor:
    """A network that tells x0: `(x, level, cond) → x0`, float32 whatever the network's dtype."""

    network: Network
    process: Process
    prediction: Prediction
    whole_times: bool = False  # the network is told the nearest whole time
    reuse: Reuse | None = None  # for one picture, or several that are looked at together

    def output(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """The network's own output for x (B, C, H, W), cond (N·B): (N·B, C, H, W), float32."""
        dtype, shares = self._manner
        if not shares:
            x = x.repeat(len(cond.tokens) // len(x), 1, 1, 1)
        clock = self.process.time(level)
        if self.whole_times:
            clock = float(round(clock))
        time = torch.full((len(x),), clock, device=x.device)
        kept = () if self.reuse is None else (self.reuse.at(level, cond),)
        return self.network(x.to(dtype), time, cond.to(dtype), *kept).float()

    @cached_property
    def _manner(self) -> tuple[torch.dtype, bool]:
        """The network's precision, which asks all its modules, and whether it shares latents."""
        dtype = next(iter(self.network.parameters())).dtype
        return dtype, getattr(self.network, "shares", False)

    def __call__(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """x0 (B, C, H, W), float32."""
        return self.prediction.x0(x, self.output(x, level, cond), level)


def predictor(
    network: Network, process: Process, prediction: Prediction, whole_times: bool = False
) -> Predictor:
    """The network as `(x, level, cond) → x0`."""
    return Predictor(network, process, prediction, whole_times)


def guided(
    predict: Predictor,
    positive: CondAt,
    negative: CondAt,
    scale: Scale,
    together: bool = True,
    rescale: float = 0.0,
) -> Denoise:
    """Classifier-free guidance (Ho and Salimans 2022): away from negative, `scale` times.

    One pass of 2B a look, two of B when not `together`, one of B where the scale is 1. It is done
    on the network's outputs, as is `rescale` (0 to 1), so that both equal diffusers.
    """
    both = joined(negative, positive)

    def look(x: Tensor, level: Level) -> Tensor:
        """The two outputs, each (B, C, H, W), mixed, as x0."""
        times = scale(level) if callable(scale) else scale
        if times == 1:
            return predict(x, level, positive(level))
        if together:
            away, towards = predict.output(x, level, both(level)).chunk(2)
        else:
            away = predict.output(x, level, negative(level))
            towards = predict.output(x, level, positive(level))
        out = torch.add(away, towards - away, alpha=times)
        return predict.prediction.x0(x, rescaled(out, towards, rescale), level)

    return look


def composed(
    predict: Predictor,
    parts: Sequence[tuple[float, CondAt]],
    negative: CondAt,
    scale: Scale,
    together: bool = True,
    rescale: float = 0.0,
) -> Denoise:
    """Several prompts at once: away from negative, `scale` times each one's weight, all added.

    Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models", equation
    11. One prompt of weight 1 is `guided`. `rescale` goes by the mean of what is wanted.
    """
    if [weight for weight, _ in parts] == [1.0]:
        return guided(predict, parts[0][1], negative, scale, together, rescale)
    weights = [weight for weight, _ in parts]
    size = sum(abs(weight) for weight in weights)
    everyone = [negative, *(at for _, at in parts)]
    everything = joined(*everyone)

    def outputs(x: Tensor, level: Level) -> Sequence[Tensor]:
        """The network's output under each condition: one pass of all, or one of each."""
        if together:
            return predict.output(x, level, everything(level)).chunk(len(everyone))
        return [predict.output(x, level, at(level)) for at in everyone]

    def look(x: Tensor, level: Level) -> Tensor:
        """The outputs, each (B, C, H, W), mixed, as x0."""
        times = scale(level) if callable(scale) else scale
        away, *towards = outputs(x, level)
        each = list(zip(weights, towards, strict=True))
        out = away + times * sum(weight * (toward - away) for weight, toward in each)
        if size:
            mean = sum(abs(weight) * toward for weight, toward in each) / size
            out = rescaled(out, torch.as_tensor(mean), rescale)
        return predict.prediction.x0(x, out, level)

    return look


def joined(*sides: CondAt) -> CondAt:
    """All as one batch, the same object while each is: networks keep what they made of it."""
    made: dict[tuple[int, ...], tuple[list[Cond], Cond]] = {}

    def at(level: Level) -> Cond:
        each = [side(level) for side in sides]
        key = tuple(map(id, each))  # no other's: all are kept
        if key not in made:
            made[key] = each, reduce(Cond.join, each)
        return made[key][1]

    return at


def in_turn(
    first: Denoise, make_second: Callable[[], Denoise], later: Callable[[Level], bool]
) -> Denoise:
    """`first` until a level is `later`, from there on a second, which is made when it is needed."""
    second: list[Denoise] = []

    def look(x: Tensor, level: Level) -> Tensor:
        if not later(level):
            return first(x, level)
        if not second:
            second.append(make_second())
        return second[0](x, level)

    return look


def rescaled(out: Tensor, towards: Tensor, share: float) -> Tensor:
    """`out` with a `share` of its contrast put back to that of `towards` (Lin et al. 2023, §3.4).

    Both are network outputs, (B, C, H, W): the factor would be another one on x0.
    """
    if not share:
        return out
    axes = (1, 2, 3)
    back = towards.std(axes, keepdim=True) / out.std(axes, keepdim=True)
    return out * (share * back + 1 - share)
