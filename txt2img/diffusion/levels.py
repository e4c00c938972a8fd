"""Noise levels, and a step between two: a sample at a level is alpha · x0 + sigma · noise."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

from txt2img.errors import BadFile

if TYPE_CHECKING:
    from torch import Tensor

Curve = Literal["diffusion", "flow"]


@dataclass(frozen=True)
class Level:
    """A noise level: `ratio` is sigma / alpha, 0 for a clean picture, inf for pure noise.

    On the curve "diffusion" alpha² + sigma² = 1, on "flow" alpha + sigma = 1.
    """

    ratio: float
    curve: Curve
    guided: bool = True  # False asks a denoiser for its prediction without guidance

    @cached_property
    def alpha(self) -> float:
        """The picture's factor, 0 to 1."""
        return 1 / (math.hypot(1, self.ratio) if self.curve == "diffusion" else 1 + self.ratio)

    @cached_property
    def sigma(self) -> float:
        """The noise's factor, 0 to 1."""
        return self.ratio * self.alpha if math.isfinite(self.ratio) else 1.0

    @property
    def scale(self) -> float:
        """Divisor of x that makes its path straight along `line`: alpha, or 1 on a flow."""
        return self.alpha if self.curve == "diffusion" else 1.0

    @property
    def line(self) -> float:
        """sigma / scale, the axis of solvers' slopes: the ratio, or a flow's sigma (1 at most)."""
        return self.ratio if self.curve == "diffusion" else self.sigma

    @property
    def half_log_snr(self) -> float:
        """ln(alpha / sigma), the solvers' clock: inf for a clean picture, -inf for pure noise."""
        return -math.log(self.ratio) if self.ratio else math.inf


def level_at(line: float, curve: Curve) -> Level:
    """The level at a place on its `line`."""
    if curve == "flow":
        line = line / (1 - line) if line < 1 else math.inf
    return Level(line, curve)


# Standard noise (B, C, H, W), float32, of a step from one level to the next: fresh at each call,
# or a scaled increment of one Brownian path (brownian.py).
Noise = Callable[[Level, Level], "Tensor"]


@dataclass(frozen=True)
class State:
    """The sample after `step` steps (1, 2, …), and the clean picture last predicted from it."""

    step: int
    x: "Tensor"  # (B, C, H, W)
    x0: "Tensor"  # (B, C, H, W)


def pairs(levels: Sequence[Level]) -> Iterator[tuple[int, tuple[Level, Level]]]:
    """(step, (level, next level)), the steps counted from 1."""
    return enumerate(pairwise(levels), start=1)


def move(
    x: "Tensor", aim: "Tensor", a: Level, b: Level, fresh: float = 0.0, noise: Noise | None = None
) -> "Tensor":
    """Take x from level a to b towards aim, with `fresh` of b's noise drawn anew."""
    keep = math.sqrt(b.sigma**2 - fresh**2) / a.sigma
    x = (keep * x).add_(aim, alpha=b.alpha - keep * a.alpha)
    return x + fresh * noise(a, b) if fresh and noise else x


def ancestral(a: Level, b: Level, eta: float) -> float:
    """Sigma of the noise that a stochastic step to b draws anew (Song et al. 2020, DDIM, eq. 16).

    Between eta 0 and 1 this is DDIM's; k-diffusion's SDE solvers scale with eta in another way.
    """
    if not eta:
        return 0.0
    ratio = a.alpha * b.sigma / (b.alpha * a.sigma)
    return eta * b.sigma * math.sqrt(max(1 - ratio**2, 0.0))


Share = Callable[[Level, Level, float], float]  # the fresh sigma of a step from a to b, for an eta


def sde_share(a: Level, b: Level, eta: float) -> float:
    """Fresh sigma of k-diffusion's DPM++ 2M and 3M SDE: between eta 0 and 1 more than DDIM's."""
    if not eta or not b.sigma:
        return 0.0
    return b.sigma * math.sqrt(-math.expm1(-2 * eta * gap(a, b)))


def flow_share(a: Level, b: Level, eta: float) -> float:
    """Fresh sigma of ComfyUI's ancestral steps of a flow (sample_euler_ancestral_RF), else DDIM's.

    The step goes down to sigma_b · (1 + (sigma_b / sigma_a - 1) · eta).
    """
    if b.curve == "diffusion" or not eta or not b.sigma:
        return ancestral(a, b, eta)
    down = b.sigma * (1 + (b.sigma / a.sigma - 1) * eta)
    return math.sqrt(max(b.sigma**2 - (down * b.alpha / (1 - down)) ** 2, 0.0))


def level_left(b: Level, fresh: float) -> Level:
    """The level that an ancestral step goes down to, before `fresh` noise takes it up to b."""
    return Level(math.sqrt(b.sigma**2 - fresh**2) / b.alpha, b.curve) if fresh else b


def gap(a: Level, b: Level) -> float:
    """Step size from a to b in half_log_snr, the paper's h; inf at either end."""
    return b.half_log_snr - a.half_log_snr


class Diffusion:
    """A variance-preserving process of `steps` levels (Ho et al. 2020); times are 0 to steps-1."""

    def __init__(self, betas: Sequence[float]) -> None:
        """Raises BadFile unless 0 < beta < 1, or 1 at the very end (zero terminal SNR)."""
        *inner, last = betas or [0.0]
        if not inner or not all(0 < beta < 1 for beta in inner) or not 0 < last <= 1:
            raise BadFile(f"betas must be two or more, each between 0 and 1; got {len(betas)}")
        alphas_cumprod = accumulate((1 - beta for beta in betas), lambda a, b: a * b)
        self.steps = len(betas)
        self.ratios = [
            math.sqrt((1 - part) / part) if part else math.inf for part in alphas_cumprod
        ]

    def level(self, time: float) -> Level:
        """The level at `time`, which may be fractional and is clamped to the table."""
        low = min(max(math.floor(time), 0), self.steps - 1)
        part = min(max(time - low, 0.0), 1.0)
        if part == 0 or low == self.steps - 1:
            return Level(self.ratios[low], "diffusion")
        a, b = self.ratios[low : low + 2]
        if math.isinf(b):  # the log ratio has no end here, but alpha falls to 0 in a straight line
            alpha = (1 - part) * Level(a, "diffusion").alpha
            return Level(math.sqrt(1 - alpha**2) / alpha, "diffusion")
        return Level(math.exp((1 - part) * math.log(a) + part * math.log(b)), "diffusion")

    def time(self, level: Level) -> float:
        """The fractional time of `level`, 0 to steps-1: the inverse of `level()`."""
        low = bisect_right(self.ratios, level.ratio) - 1
        if low < 0 or low == self.steps - 1:
            return float(max(low, 0))
        a, b = self.ratios[low : low + 2]
        if math.isinf(b):
            return low + 1 - level.alpha / Level(a, "diffusion").alpha
        return low + math.log(level.ratio / a) / math.log(b / a)

    def entry(self, index: float) -> Level:
        """Level `index` of the table, 0 the cleanest, steps-1 the noisiest."""
        return self.level(index)


class Flow:
    """A rectified flow (Liu et al. 2022): sigma = time / time_factor, from 0 to pure noise."""

    def __init__(
        self, time_factor: float = 1000.0, steps: int = 1000, shift: float | None = None
    ) -> None:
        """`steps` is the number of entries that schedules count in.

        `shift` multiplies the entries' ratios; None leaves it to each schedule.
        """
        self.time_factor = time_factor
        self.steps = steps
        self.shift = shift

    def level(self, time: float) -> Level:
        """The level at `time`, which is clamped to 0 … time_factor."""
        sigma = min(max(time / self.time_factor, 0.0), 1.0)
        return Level(sigma / (1 - sigma) if sigma < 1 else math.inf, "flow")

    def time(self, level: Level) -> float:
        """The time of `level`, 0 to time_factor: the inverse of `level()`."""
        return level.sigma * self.time_factor

    def entry(self, index: float) -> Level:
        """Level `index` of a table of sigmas 1/steps … 1, shifted: steps-1 is pure noise."""
        level = self.level((index + 1) / self.steps * self.time_factor)
        return level if self.shift is None else Level(self.shift * level.ratio, "flow")


Process = Diffusion | Flow


def betas(name: str, n: int, start: float, end: float) -> list[float]:
    """The n betas named "linear", "scaled_linear" or "cosine"; raises BadFile for another name.

    Linear: Ho et al. 2020. Scaled linear, in the root of beta: Rombach et al. 2022. Cosine:
    Nichol and Dhariwal 2021, equation 17, which has no start and no end.
    """
    if name == "linear":
        return [start + (end - start) * i / (n - 1) for i in range(n)]
    if name == "scaled_linear":
        return [root**2 for root in betas("linear", n, math.sqrt(start), math.sqrt(end))]
    if name == "cosine":
        cumprod = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        return [min(1 - cumprod[i + 1] / cumprod[i], 0.999) for i in range(n)]
    raise BadFile(f"no betas {name!r}; choose from linear, scaled_linear, cosine")


def zero_terminal_snr(betas: Sequence[float]) -> list[float]:
    """The betas moved so that the last level is pure noise (Lin et al. 2023, Algorithm 1)."""
    alphas = [math.sqrt(part) for part in accumulate((1 - b for b in betas), lambda a, b: a * b)]
    first, last = alphas[0], alphas[-1]
    cumprod = [((alpha - last) * first / (first - last)) ** 2 for alpha in alphas]
    return [1 - cumprod[0], *(1 - b / a for a, b in pairwise(cumprod))]
