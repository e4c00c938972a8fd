"""Reuse of a U-Net's deep features: which evaluations compute them, and which take earlier ones.

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
class Kept:
    """The output of a network's deep layers, (B, C, H, W); None until the network computes it."""

    deep: Tensor | None = None


class Reuse:
    """The deep features of one picture, or of several that are always in one batch.

    Each condition has its own. They are computed anew every `every` steps; the level of an
    evaluation tells in which step it is.
    """

    def __init__(self, every: int, levels: Sequence[Level]) -> None:
        self.every = every
        self._ratios = [-level.ratio for level in levels]  # upwards
        self._kept: dict[int, tuple[int, Kept, Cond]] = {}  # by id: made in which step

    def at(self, level: Level, cond: Cond) -> Kept:
        """The features to use at a level; with `deep` None they are to be computed into it."""
        step = bisect_right(self._ratios, -level.ratio)
        made, kept, _ = self._kept.get(id(cond), (step, Kept(), cond))
        if not made <= step < made + self.every:  # too old, or of another run
            made, kept = step, Kept()
        # The condition is kept too, so that no other gets its id.
        self._kept[id(cond)] = made, kept, cond
        for key, (before, _, _) in list(self._kept.items()):
            if not before <= step < before + self.every:
                del self._kept[key]
        return kept
