"""Conditions of a network: text embeddings and what comes with them, one a level."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from txt2img.diffusion.levels import Level


@dataclass(frozen=True)
class Cond:
    """What a network is told besides x and time; every tensor's first axis is the batch."""

    tokens: Tensor  # (B, L, D)
    pooled: Tensor | None = None  # (B, P)
    extra: Tensor | None = None  # sizes, (B, E)
    beside: Tensor | None = None  # more input channels, (B, C', H, W)
    scale: Tensor | None = None  # of the guidance, less 1, for a network that is told it, (B,)

    def join(self, other: "Cond") -> "Cond":
        """Both as one batch, this one's first; a part that either lacks is left out."""
        return Cond(
            torch.cat([self.tokens, other.tokens]),
            cat(self.pooled, other.pooled),
            cat(self.extra, other.extra),
            cat(self.beside, other.beside),
            cat(self.scale, other.scale),
        )

    def silent(self) -> "Cond":
        """The same with zeros for words: what SDXL learned instead of an empty prompt."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return replace(self, tokens=torch.zeros_like(self.tokens), pooled=pooled)

    def lengthened(self, times: float) -> "Cond":
        """The same `times` as long, at least once: by its last token, again and again.

        So A1111 makes parts that AND joins equally long (prompt_parser.py, stack_conds).
        """
        length = self.tokens.shape[1]
        more = self.tokens[:, -1:].expand(-1, round(times * length) - length, -1)
        return replace(self, tokens=torch.cat([self.tokens, more], dim=1))

    def to(self, dtype: torch.dtype) -> "Cond":
        """The same in `dtype`, but for the numbers: bf16 is too coarse for sizes in pixels.

        It is the same object each time: networks keep what they made of it.
        """
        if all(part is None or part.dtype == dtype for part in self.written()):
            return self
        if dtype not in self._cast:
            self._cast[dtype] = Cond(
                self.tokens.to(dtype),
                None if self.pooled is None else self.pooled.to(dtype),
                self.extra,
                None if self.beside is None else self.beside.to(dtype),
                self.scale,
            )
        return self._cast[dtype]

    @cached_property
    def _cast(self) -> dict[torch.dtype, "Cond"]:
        return {}

    def written(self) -> tuple[Tensor | None, ...]:
        """The parts that are in a network's precision."""
        return self.tokens, self.pooled, self.beside

    def at(self, device: torch.device) -> "Cond":
        """The same on a device."""
        if self.tokens.device == device:
            return self
        parts = (self.tokens, self.pooled, self.extra, self.beside, self.scale)
        tokens, *others = (None if part is None else part.to(device) for part in parts)
        assert tokens is not None
        return Cond(tokens, *others)


def cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Both along the batch axis, None if either is."""
    return None if a is None or b is None else torch.cat([a, b])


CondAt = Callable[[Level], Cond]


Course = Sequence[tuple[int, Cond]]  # conditions in turn, each with its last step, from 1


def over_time(course: Course, levels: Sequence[Level], late: bool = False) -> CondAt:
    """The condition of each level: the course's for the step that leaves it.

    Levels between two are of the step that passes them. `late` changes come a step later.
    """
    if len(course) == 1:
        [(_, always)] = course
        return lambda level: always
    ratios = [-level.ratio for level in levels]  # upwards

    def at(level: Level) -> Cond:
        step = max(bisect_right(ratios, -level.ratio), 1) - late
        return next((cond for until, cond in course if step <= until), course[-1][1])

    return at
