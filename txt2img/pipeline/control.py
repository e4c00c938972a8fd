"""ControlNets and T2I-Adapters of a request → what each pass of its U-Net adds."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.levels import Level
from txt2img.images.hint import hint_pixels
from txt2img.models.controlnet import ControlNet
from txt2img.models.t2i_adapter import T2IAdapter
from txt2img.models.unet import added
from txt2img.request import Request
from txt2img.request.compat import Rules
from txt2img.request.control import Control, ControlMode
from txt2img.weights.control import control_networks
from txt2img.weights.layouts.control import type_index
from txt2img.weights.model import Model

SOFT = 0.825  # by which each residual is less than the next deeper one, in A1111
# The same for a T2I-Adapter's levels (sd-webui-controlnet, scripts/hook.py: soft_injection).
SOFT_LEVELS = 0.25, 0.62, 0.825, 1.0
DEEPEST = 12  # the number of SD 1's middle block, whose residual that is nothing less


@dataclass(frozen=True)
class Hint:
    """What a ControlNet sees of its picture, embedded once."""

    features: Tensor  # (1, C, h, w)
    kind: Tensor | None  # (1, D), of a Union model


@dataclass
class ControlUse:
    """One ControlNet of a picture: its pixels, its strength and when it is on."""

    network: ControlNet
    pixels: Tensor  # (1, 3, H, W) in 0…1
    control: Control
    mode: ControlMode
    kind: int | None  # of a Union model
    soft: bool = False  # also where the ControlNet counts for more, as in A1111
    hint: Hint | None = None  # from the first use on

    @property
    def spares_negatives(self) -> bool:
        """Whether it reaches the passes of prompts alone, not those of negatives."""
        pools = self.network.control_config.global_pool
        return pools or self.mode is ControlMode.CONTROL

    def weights(self, count: int) -> list[float]:
        """The factor of each of the residuals, the middle's last."""
        weight = self.control.weight
        soft = ControlMode.PROMPT, *([ControlMode.CONTROL] if self.soft else [])
        if self.mode in soft:
            return [weight * SOFT ** (DEEPEST - i) for i in range(count)]
        if self.mode is ControlMode.CONTROL and not self.network.control_config.global_pool:
            return [weight * 10 ** (i / (count - 1) - 1) for i in range(count)]
        return [weight] * count

    def residuals(self, x: Tensor, times: Tensor, cond: Cond, first_only: bool) -> list[Tensor]:
        """The weighted residuals of one pass; the first one alone where that is all it takes."""
        if self.hint is None:
            features = self.network.embed_hint(self.pixels.to(x), self.kind)
            self.hint = Hint(features, self.network.embed_kind(self.kind, x))
        hint = self.hint
        out = self.network(x, times, cond, hint.features, hint.kind, first_only)
        blocks = len(self.network.controlnet_down_blocks) + 1
        pairs = zip(out, self.weights(blocks), strict=False)
        scaled = [one if weight == 1 else one * weight for one, weight in pairs]
        return self.network.pooled(scaled)


@dataclass
class AdapterUse:
    """One T2I-Adapter of a picture, whose features are computed once."""

    network: T2IAdapter
    pixels: Tensor  # (1, 3, H, W) in 0…1
    control: Control
    mode: ControlMode
    computed: list[Tensor] | None = None  # weighted

    @property
    def spares_negatives(self) -> bool:
        """Whether it reaches the passes of prompts alone, not those of negatives."""
        return self.mode is ControlMode.CONTROL

    def features(self, x: Tensor) -> list[Tensor]:
        """The weighted features of each level, in the dtype of x."""
        if self.computed is None:
            out, weight = self.network(self.pixels.to(x)), self.control.weight
            soft = (1.0,) * len(out) if self.mode is ControlMode.BALANCED else SOFT_LEVELS
            scales = soft[-len(out) :]
            self.computed = [one * weight * s for one, s in zip(out, scales, strict=True)]
        return self.computed


class ControlNets:
    """ControlNets and T2I-Adapters of pictures drawn together, as a change of each condition."""

    def __init__(self, uses: Sequence[ControlUse | AdapterUse], levels: Sequence[Level]) -> None:
        self.uses = uses
        self._ratios = [-level.ratio for level in levels]  # ascending
        # By the condition's id, which stays unique as long as the condition is kept here too.
        self._parts: dict[int, tuple[Cond, Cond]] = {}

    def active(self, level: Level) -> list[ControlUse | AdapterUse]:
        """Those that are on in the step from a level."""
        steps = len(self._ratios) - 1
        step = max(bisect_right(self._ratios, -level.ratio), 1) - 1
        return [use for use in self.uses if use.control.interval.has_step(step, steps)]

    def __call__(
        self, x: Tensor, times: Tensor, level: Level, cond: Cond, first_only: bool = False
    ) -> Cond:
        """A condition (N·B rows) with the residuals and features for x (B, C, H, W), summed.

        Where deep features are cached, so is all that T2I-Adapters add.
        """
        residuals: list[Tensor] = []
        features: list[Tensor] = []
        for use in self.active(level):
            start = cond.negatives if use.spares_negatives else 0
            if start == len(cond.tokens):
                continue
            part = self._part(cond, start) if start else cond
            if isinstance(use, AdapterUse):
                out, total = [] if first_only else use.features(x), features
            else:
                out, total = use.residuals(x, times, part, first_only), residuals
            if start:
                missing = len(cond.tokens) - len(part.tokens)
                out = [_after_zeros(one, missing, len(part.tokens)) for one in out]
            total[:] = [added(a, b) for a, b in zip(total, out, strict=True)] if total else out
        if not residuals and not features:
            return cond
        return replace(cond, residuals=tuple(residuals), features=tuple(features))

    def _part(self, cond: Cond, start: int) -> Cond:
        """The rows of prompts; the same object each time, since networks cache by object."""
        return self._parts.setdefault(id(cond), (cond, cond.rows_from(start)))[1]


def controls_of(
    model: Model, request: Request, rules: Rules, levels: Sequence[Level]
) -> ControlNets | None:
    """The ControlNets of filled requests like this one; None if nothing of them is to be seen.

    BadFile, MissingWeights, OutOfMemory.
    """
    numbers = [number for number, one in enumerate(request.controls) if one.weight]
    controls = [request.controls[number] for number in numbers]
    networks = control_networks(model, controls)
    names = list(dict.fromkeys(one.model.name for one in controls))
    mode, files = request.control_mode or ControlMode.BALANCED, model.adapters.control_files
    uses: list[ControlUse | AdapterUse] = []
    for number, one in zip(numbers, controls, strict=True):
        network = networks[names.index(one.model.name)]
        pixels = to_hint(request, number, rules, model)
        if isinstance(network, T2IAdapter):
            uses.append(AdapterUse(network, pixels, one, mode))
            continue
        kind = type_index(files[one.model.name].config, one.type, one.model.name)
        uses.append(ControlUse(network, pixels, one, mode, kind, rules.soft_control))
    return ControlNets(uses, levels) if uses else None


def to_hint(request: Request, number: int, rules: Rules, model: Model) -> Tensor:
    """A ControlNet's picture, or the map that is made of it, as pixels (1, 3, H, W) in 0…1."""
    control = request.controls[number]
    image = hint_pixels(request, control, rules, model.adapters.paths.images)
    if (how := request.preprocess_of(number)) is not None:
        from txt2img.pipeline.preprocess import preprocess_for

        image = preprocess_for(model, image, how)
    values = torch.from_numpy(np.asarray(image).copy())  # (H, W, 3)
    return values.permute(2, 0, 1)[None].float() / 255


def _after_zeros(residual: Tensor, rows: int, own: int) -> Tensor:
    """A residual of the last `own` rows, below zeros for those before."""
    whole = residual if len(residual) == own else torch.cat([residual] * (own // len(residual)))
    return torch.cat([whole.new_zeros(rows, *whole.shape[1:]), whole])
