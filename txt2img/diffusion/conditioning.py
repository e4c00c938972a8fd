"""Conditioning of a network: text embeddings and what comes with them, level by level."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import torch
from torch import Tensor

from txt2img.diffusion.levels import Level


@dataclass(frozen=True)
class ImagePrompt:
    """What cross-attention sees of pictures beside the text: an IP-Adapter's keys and values."""

    pairs: Tensor  # of all cross-attentions, flat, (B, N): see models/ip_adapter.py
    mask: Tensor | None = None  # where they count, at the sizes of the network's maps, (B, P)

    def join(self, other: "ImagePrompt") -> "ImagePrompt":
        """Batch both, this one first."""
        return ImagePrompt(torch.cat([self.pairs, other.pairs]), cat(self.mask, other.mask))

    def to(self, to: torch.dtype | torch.device) -> "ImagePrompt":
        """Cast or move both tensors."""
        return ImagePrompt(self.pairs.to(to), _moved(self.mask, to))


@dataclass(frozen=True)
class Cond:
    """Inputs of a network besides x and time; every tensor's first axis is the batch."""

    tokens: Tensor  # text embeddings, (B, L, D)
    pooled: Tensor | None = None  # one embedding of the whole text, (B, P)
    size_ids: Tensor | None = None  # SDXL's sizes and crops, (B, E)
    extra_channels: Tensor | None = None  # a mask and a picture, say, (B, C', H, W)
    guidance: Tensor | None = None  # the guidance scale that a network embeds, (B,)
    references: tuple[Tensor, ...] = ()  # latents of pictures to draw from, each (B, C, h, w)
    image_prompts: tuple[ImagePrompt, ...] = ()  # of IP-Adapters
    residuals: tuple[Tensor, ...] = ()  # of ControlNets: for each skip connection, then the middle
    features: tuple[Tensor, ...] = ()  # of T2I-Adapters: for each level on the way down
    negatives: int = 0  # how many rows, the first, are of negative prompts

    def join(self, other: "Cond") -> "Cond":
        """Batch both, this one first; a tensor that either lacks is left out."""
        return Cond(
            torch.cat([self.tokens, other.tokens]),
            cat(self.pooled, other.pooled),
            cat(self.size_ids, other.size_ids),
            cat(self.extra_channels, other.extra_channels),
            cat(self.guidance, other.guidance),
            tuple(map(torch.cat, zip(self.references, other.references, strict=False))),
            tuple(a.join(b) for a, b in zip(self.image_prompts, other.image_prompts, strict=True)),
            negatives=self.negatives + other.negatives * (self.negatives == len(self.tokens)),
        )

    def rows_from(self, start: int) -> "Cond":
        """The texts of the rows from one on."""
        pooled = None if self.pooled is None else self.pooled[start:]
        size_ids = None if self.size_ids is None else self.size_ids[start:]
        return Cond(self.tokens[start:], pooled, size_ids)

    def zeroed(self) -> "Cond":
        """Zero the text embeddings: what SDXL learned instead of an empty prompt."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return replace(self, tokens=torch.zeros_like(self.tokens), pooled=pooled)

    def padded_to(self, length: int) -> "Cond":
        """Pad the tokens to `length` by repeating the last one.

        A1111 makes the parts of AND equally long in this way (prompt_parser.py, stack_conds).
        """
        padding = self.tokens[:, -1:].expand(-1, length - self.tokens.shape[1], -1)
        return replace(self, tokens=torch.cat([self.tokens, padding], dim=1))

    def to(self, dtype: torch.dtype) -> "Cond":
        """Cast all but sizes and guidance scale: bf16 is too coarse for sizes in pixels.

        The result is cached, since networks cache what they compute from each object.
        """
        parts = [self.tokens, self.pooled, self.extra_channels, *self.references]
        parts += [part for one in self.image_prompts for part in (one.pairs, one.mask)]
        if all(part is None or part.dtype == dtype for part in parts):
            return self
        if dtype not in self._casts:
            self._casts[dtype] = replace(
                self,
                tokens=self.tokens.to(dtype),
                pooled=_moved(self.pooled, dtype),
                extra_channels=_moved(self.extra_channels, dtype),
                references=tuple(part.to(dtype) for part in self.references),
                image_prompts=tuple(part.to(dtype) for part in self.image_prompts),
            )
        return self._casts[dtype]

    @cached_property
    def _casts(self) -> dict[torch.dtype, "Cond"]:
        return {}

    def on(self, device: torch.device) -> "Cond":
        """Move every tensor to a device."""
        if self.tokens.device == device:
            return self
        return Cond(
            self.tokens.to(device),
            _moved(self.pooled, device),
            _moved(self.size_ids, device),
            _moved(self.extra_channels, device),
            _moved(self.guidance, device),
            tuple(part.to(device) for part in self.references),
            tuple(part.to(device) for part in self.image_prompts),
            negatives=self.negatives,
        )


def _moved(part: Tensor | None, to: torch.dtype | torch.device) -> Tensor | None:
    return None if part is None else part.to(to)


def cat(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Concatenate along the batch axis; None if either is None."""
    return None if a is None or b is None else torch.cat([a, b])


CondAt = Callable[[Level], Cond]

ScheduledCond = Sequence[tuple[int, Cond]]  # conditions in turn, each with its last step, from 1


def over_time(scheduled: ScheduledCond, levels: Sequence[Level], late: bool = False) -> CondAt:
    """Look up the condition of each level: the scheduled one for the step that leaves it.

    A level between two belongs to the step that passes it. `late` changes come a step later.
    """
    if len(scheduled) == 1:
        [(_, always)] = scheduled
        return lambda level: always
    ratios = [-level.ratio for level in levels]  # ascending

    def at(level: Level) -> Cond:
        step = max(bisect_right(ratios, -level.ratio), 1) - late
        return next((cond for until, cond in scheduled if step <= until), scheduled[-1][1])

    return at


def batched_conds(*conds: CondAt) -> CondAt:
    """Batch several conditions; cached, since networks cache what they compute from each object."""
    batches: dict[tuple[int, ...], tuple[list[Cond], Cond]] = {}

    def at(level: Level) -> Cond:
        parts = [cond(level) for cond in conds]
        key = tuple(map(id, parts))  # unique, as the dictionary keeps the parts alive
        if key not in batches:
            batches[key] = parts, reduce(Cond.join, parts)
        return batches[key][1]

    return at
