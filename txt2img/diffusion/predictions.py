"""Prediction types, what a network's output means: the noise eps, the velocity v, or the flow."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from txt2img.diffusion.levels import Level
from txt2img.errors import BadRequest


class Shares(Protocol):
    """Factors of picture and noise: a Level's, or tensors of a batch with many levels."""

    @property
    def alpha(self) -> float | Tensor:
        """The picture's factor."""

    @property
    def sigma(self) -> float | Tensor:
        """The noise's factor."""


@dataclass(frozen=True)
class Prediction:
    """A prediction type as two formulas on tensors of any one shape.

    `x0(x, out, level)` is the clean picture that an output implies for sample x, and
    `target(x0, noise, level)` the output that a network should learn.
    """

    x0: Callable[[Tensor, Tensor, Level], Tensor]
    target: Callable[[Tensor, Tensor, Shares], Tensor]


def eps_x0(x: Tensor, out: Tensor, level: Level) -> Tensor:
    """x0 from predicted noise (Ho et al. 2020); BadRequest at pure noise, where alpha is 0."""
    if not level.alpha:
        raise BadRequest(
            "this model predicts noise, which tells nothing about a picture at pure noise; "
            "a model with zero terminal SNR must predict v"
        )
    return (x - level.sigma * out).div_(level.alpha)


# v: Salimans and Ho 2022, appendix D. flow: Liu et al. 2022, with time running towards noise.
PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(
        x0=eps_x0,
        target=lambda x0, noise, level: noise,
    ),
    "v": Prediction(
        x0=lambda x, out, level: (level.alpha * x).sub_(level.sigma * out),
        target=lambda x0, noise, level: level.alpha * noise - level.sigma * x0,
    ),
    "flow": Prediction(
        x0=lambda x, out, level: x - level.sigma * out,
        target=lambda x0, noise, level: noise - x0,
    ),
}
