"""Other ways to guide than classifier-free guidance alone: of x0, for a negative and a prompt."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from txt2img.diffusion.levels import Level

AXES = (-3, -2, -1)


@dataclass
class ProjectedGuidance:
    """Adaptive projected guidance (Sadat et al. 2024, "Eliminating Oversaturation …", APG).

    Of the guidance, `eta` of what is parallel to the prompt's x0 stays; its norm is `threshold` at
    most, unless that is 0; `momentum` of the last guidance is added, most often a negative share.
    ComfyUI adds `scale` times the result, the paper scale - 1 times.
    """

    eta: float
    threshold: float
    momentum: float
    as_comfyui: bool = False
    _average: Tensor | None = field(default=None, init=False)
    _ratio: float = field(default=0.0, init=False)

    def __call__(self, away: Tensor, towards: Tensor, scale: float, level: Level) -> Tensor:
        """x0 (B, C, H, W) from the negative's and the prompt's."""
        guidance = towards - away
        if self.momentum:
            if self._average is not None and level.ratio <= self._ratio:
                guidance = guidance + self.momentum * self._average
            self._average, self._ratio = guidance, level.ratio
        if self.threshold:
            norm = guidance.norm(p=2, dim=AXES, keepdim=True)
            guidance = guidance * (self.threshold / norm).clamp(max=1)
        length = towards.norm(p=2, dim=AXES, keepdim=True)
        unit = towards / length.clamp(min=1e-12)
        parallel = (guidance * unit).sum(dim=AXES, keepdim=True) * unit
        kept = guidance + (self.eta - 1) * parallel
        times = scale if self.as_comfyui else scale - 1
        return torch.add(towards, kept, alpha=times)


@dataclass
class DynamicThresholding:
    """Dynamic thresholding of sd-dynamic-thresholding, after Saharia et al. 2022 (Imagen), §2.3.

    Each channel is cut at a percentile of its distance from its mean, then shrunk to the range
    that the `mimic` scale gives. With its default settings: modes constant, MEAN and AD.
    """

    mimic: float
    percentile: float

    def __call__(self, away: Tensor, towards: Tensor, scale: float, level: Level) -> Tensor:
        """x0 (B, C, H, W) from the negative's and the prompt's."""
        guidance = towards - away
        wanted = (away + guidance * self.mimic).flatten(2)
        given = (away + guidance * scale).flatten(2)
        mean = given.mean(2, keepdim=True)
        centred = given - mean
        top = (wanted - wanted.mean(2, keepdim=True)).abs().amax(2, keepdim=True)
        cut = torch.quantile(centred.abs(), self.percentile, dim=2, keepdim=True)
        limit = torch.maximum(top, cut)
        shrunk = centred.clamp(-limit, limit) / limit * top
        return (shrunk + mean).reshape(towards.shape)
