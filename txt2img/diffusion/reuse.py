"""Which looks of a network go by what an earlier look made of its deep layers, and which make it.

Ma et al. 2024, "DeepCache: Accelerating Diffusion Models for Free": from step to step a U-Net's
deep features change little.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from txt2img.diffusion.levels import Level

if TYPE_CHECKING:
    from txt2img.diffusion.guidance import Cond


@dataclass
class Kept:
    """What a network made of its deep layers, (B, C, H, W); where it is None, it is to be made."""

    deep: Tensor | None = None


class Reuse:
    """What is kept of the looks at one picture, or at several that are always looked at together.

    It is kept for each condition by itself, for `every` steps, counted by the levels.
    """

    def __init__(self, every: int, levels: Sequence[Level]) -> None:
        self.every = every
        self._ratios = [-level.ratio for level in levels]  # upwards
        self._kept: dict[int, tuple[int, Kept, Cond]] = {}  # by id: made in which step

    def at(self, level: Level, cond: "Cond") -> Kept:
        """What a look at a level goes by, or where it is to leave what it makes."""
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
