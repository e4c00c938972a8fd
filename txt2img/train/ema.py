"""Exponential moving average of weights, which is what a run exports."""

import torch
from torch import Tensor, nn


class EMA:
    """EMA of a module's parameters, with a warm-up.

    The decay rises as (1 + step) / (10 + step) up to `decay`, so early weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Update the mean by the module's parameters after `step` (from 0)."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        names = list(self.mean)
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(
            [self.mean[name] for name in names],
            [parameters[name].detach().float() for name in names],
            share,
        )

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Swap the mean with the module's parameters; a second call swaps them back."""
        for name, parameter in module.named_parameters():
            held: Tensor = self.mean[name].clone()
            self.mean[name].copy_(parameter)
            parameter.copy_(held)
