"""DeepCache: reuse a U-Net's deep features for several steps.

Ma et al. 2024, "DeepCache: Accelerating Diffusion Models for Free": from step to step a U-Net's
deep features change little.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.levels import Level


@dataclass
class FeatureCache:
    """Output of a network's deep layers, (B, C, H, W); None until the network computes it."""

    features: Tensor | None = None


class DeepCache:
    """The deep features of one picture, or of several that are always in one batch.

    Each condition has its own. They are recomputed every `every` steps; an evaluation's level
    tells which step it belongs to.
    """

    def __init__(self, every: int, levels: Sequence[Level]) -> None:
        self.every = every
        self._ratios = [-level.ratio for level in levels]  # ascending
        # By the condition's id, which stays unique as long as the condition is kept here too.
        self._caches: dict[int, tuple[int, FeatureCache, Cond]] = {}  # and the step it is of

    def at(self, level: Level, cond: Cond) -> FeatureCache:
        """The cache to use at a level; an empty one is for the network to fill."""
        step = bisect_right(self._ratios, -level.ratio)
        self._caches = {  # without those that are too old, or of another run
            key: entry for key, entry in self._caches.items() if 0 <= step - entry[0] < self.every
        }
        return self._caches.setdefault(id(cond), (step, FeatureCache(), cond))[1]
