"""Optimizers of a stage: AdamW, or Muon for matrices and kernels with AdamW for the rest."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from txt2img.train.config import Run

MUON_PART = "unet"  # the submodule that Muon may train; embeddings are left to AdamW


class KernelMuon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), extended to kernels as matrices (out, in · h · w).

    The matrices share the parameters' memory, so stepping one steps the other.
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
            adjust_lr_fn="match_rms_adamw",  # update · 0.2 · √max(m, n), so AdamW's rates fit
        )

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step by the gradients of the parameters."""
        for parameter, matrix in self.matrices.items():
            grad = parameter.grad
            matrix.grad = None if grad is None else as_matrix(grad, parameter)
        return cast("float | None", super().step(closure))  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, the parameters' own included."""
        super().zero_grad(set_to_none)
        for parameter in self.matrices:
            parameter.grad = None


def as_matrix(kernel: Tensor, like: Tensor) -> Tensor:
    """Flatten a kernel (out, in, h, w) to rows in the memory order of `like`; keep a matrix."""
    if like.ndim > 2 and not like.is_contiguous():
        kernel = kernel.movedim(1, -1)  # channels last
    return kernel.reshape(len(kernel), -1)


def optimizers_of(
    module: nn.Module, run: Run, rates: dict[str, float]
) -> list[torch.optim.Optimizer]:
    """The optimizers of a module: AdamW, preceded by Muon if the run asks for it.

    AdamW (Loshchilov and Hutter 2019) decays only matrices and kernels. A group's `rate` is its
    share of the learning rate.
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
    """Set each group's share of a learning rate; returns that rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate"]
    return rate


def moments_of(
    module: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, dict[str, Tensor]]:
    """Parameter name → the tensors of its optimizer state."""
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
    """Restore what `moments_of` returned after `step` steps."""
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
    """Each parameter's name, its optimizer, and the tensor that stands for it there."""
    for name, parameter in module.named_parameters():
        for optimizer in optimizers:
            if isinstance(optimizer, KernelMuon):
                if parameter in optimizer.matrices:
                    yield name, optimizer, optimizer.matrices[parameter]
            elif any(parameter is p for group in optimizer.param_groups for p in group["params"]):
                yield name, optimizer, parameter
