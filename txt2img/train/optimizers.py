"""Optimisers of a stage: AdamW for all of it, or Muon for its matrices and kernels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from txt2img.train.config import Run

MUON_PART = "unet"  # what Muon is for: embeddings and text encoders do better with AdamW


class KernelMuon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024) for kernels too, each seen as a matrix (out, in · h · w).

    The matrices share the parameters' memory, so a step on one is a step on the other.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.matrices = {p: nn.Parameter(as_matrix(p.detach(), p)) for p in parameters}
        groups = [{"params": list(self.matrices.values()), "rate": 1.0}]
        super().__init__(
            cast("Any", groups),
            lr=lr,
            weight_decay=weight_decay,
            momentum=0.95,
            ns_steps=5,
            adjust_lr_fn="match_rms_adamw",  # update · 0.2 · √max(m, n): AdamW's rates fit
        )

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step down the gradients of the parameters."""
        for parameter, matrix in self.matrices.items():
            grad = parameter.grad
            matrix.grad = None if grad is None else as_matrix(grad, parameter)
        return cast("float | None", super().step(closure))  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, the parameters' own among them."""
        super().zero_grad(set_to_none)
        for parameter in self.matrices:
            parameter.grad = None


def as_matrix(kernel: Tensor, like: Tensor) -> Tensor:
    """A kernel (out, in, h, w) as rows, in the order of `like`'s memory; a matrix as it is."""
    if like.ndim > 2 and not like.is_contiguous():
        kernel = kernel.movedim(1, -1)  # channels last
    return kernel.reshape(len(kernel), -1)


def optimizers_of(
    module: nn.Module, run: Run, rates: dict[str, float]
) -> list[torch.optim.Optimizer]:
    """What moves a module's parameters: AdamW, and Muon before it where the run says so.

    AdamW (Loshchilov and Hutter 2019) lets only matrices and kernels decay. A group's `rate` is
    the part of the learning rate that it learns at.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    matrices: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        part = name.partition(".")[0]
        if run.optimizer == "muon" and part == MUON_PART and parameter.ndim > 1:
            matrices.append(parameter)
        else:
            key = rates.get(part, 1.0), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    table: list[dict[str, object]] = [
        {"params": members, "rate": rate, "weight_decay": run.weight_decay if decays else 0.0}
        for (rate, decays), members in groups.items()
    ]
    adamw = torch.optim.AdamW(table, lr=run.lr, fused=True)
    return [KernelMuon(matrices, run.lr, run.weight_decay), adamw] if matrices else [adamw]


def set_rate(optimizers: Sequence[torch.optim.Optimizer], rate: float) -> float:
    """Let each group learn at its part of a rate; gives that rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
    return rate


def moments_of(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, dict[str, Tensor]]:
    """Parameter name → what its optimiser remembers of it."""
    moments: dict[str, dict[str, Tensor]] = {}
    for name, optimizer, target in targets(module, optimizers):
        state = optimizer.state.get(target, {})
        moments[name] = {key: value for key, value in state.items() if key != "step"}
    return moments


def restore_moments(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    moments: dict[str, dict[str, Tensor]],
) -> None:
    """Give the optimisers back what `moments_of` gave, after `step` steps."""
    for name, optimizer, target in targets(module, optimizers):
        if name not in moments:  # it never had a gradient
            continue
        # in the parameter's own order, as fused AdamW wants them
        state = {k: torch.empty_like(target).copy_(v) for k, v in moments[name].items()}
        if not isinstance(optimizer, KernelMuon):
            state["step"] = torch.tensor(float(step), device=target.device)
        optimizer.state[target] = state


def targets(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> Iterator[tuple[str, torch.optim.Optimizer, Tensor]]:
    """Each parameter's name, its optimiser, and the tensor that this one knows it by."""
    for name, parameter in module.named_parameters():
        for optimizer in optimizers:
            if isinstance(optimizer, KernelMuon):
                if parameter in optimizer.matrices:
                    yield name, optimizer, optimizer.matrices[parameter]
            elif any(parameter is p for group in optimizer.param_groups for p in group["params"]):
                yield name, optimizer, parameter
