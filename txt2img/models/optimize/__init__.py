"""Optimisations of networks: the networks themselves stay plain torch."""

from torch import nn

from txt2img.models.optimize.cpu import CpuPlan, set_plan

__all__ = ["CpuPlan", "optimize"]


def optimize(network: nn.Module, plan: CpuPlan | None = None, token_merging: float = 0.0) -> None:
    """Make a network faster for one picture, in place; without arguments make it plain again.

    Outputs stay the same up to rounding, but with `token_merging`, which is an approximation.
    """
    set_plan(network, plan)
    merge = getattr(network, "merge_tokens", None)
    if merge is not None:
        merge(token_merging)
