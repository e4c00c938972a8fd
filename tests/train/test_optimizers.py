"""Optimisers: parts learn at their own rates, Muon moves kernels, and moments come back."""

from pathlib import Path

import pytest
import torch
from torch import nn

from txt2img.train.checkpoint import load_state, save_state
from txt2img.train.config import Run
from txt2img.train.ema import EMA
from txt2img.train.optimizers import KernelMuon, as_matrix, optimizers_of, set_rate

MUON = Run(lr=1.0, weight_decay=0.0, optimizer="muon")


def unet(channels_last: bool = False) -> nn.ModuleDict:
    """A learner with a kernel, a matrix and a bias in its U-Net, and a text encoder."""
    torch.manual_seed(0)
    layers = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3), "linear": nn.Linear(5, 3)})
    learner = nn.ModuleDict({"text": nn.Linear(2, 2), "unet": layers})
    if channels_last:
        learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner


def fill_gradients(learner: nn.Module) -> None:
    """Gradients of chance, the same for every learner."""
    generator = torch.Generator().manual_seed(1)
    for parameter in learner.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_a_part_of_the_learner_learns_more_slowly() -> None:
    learner = nn.ModuleDict({"text": nn.Linear(2, 2), "unet": nn.Linear(2, 2)})
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    optimizers = optimizers_of(learner, Run(lr=1.0, weight_decay=0.0), {"text": 0.25})
    set_rate(optimizers, 1.0)
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    for name, value in learner.state_dict().items():
        moved = before[name] - value  # Adam's first step is as long as its rate
        assert moved.mean().item() == pytest.approx(0.25 if "text" in name else 1.0, rel=1e-4)


def test_muon_has_the_unets_matrices_and_kernels_and_adamw_the_rest() -> None:
    learner = unet()
    muon, adamw = optimizers_of(learner, MUON, {})
    assert isinstance(muon, KernelMuon)
    assert {tuple(p.shape) for p in muon.matrices} == {(6, 4, 3, 3), (3, 5)}
    others = [p for group in adamw.param_groups for p in group["params"]]
    assert len(others) + len(muon.matrices) == len(list(learner.parameters()))


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_moves_a_kernel_along_all_directions_alike(channels_last: bool) -> None:
    """An update is near orthogonal, times 0.2 · √max(m, n): Newton and Schulz stop within 0.5."""
    learner = unet(channels_last)
    kernel = learner["unet"]["conv"].weight  # type: ignore[index]
    before = kernel.detach().clone()
    optimizers = optimizers_of(learner, MUON, {})
    set_rate(optimizers, 1.0)
    fill_gradients(learner)
    optimizers[0].step()
    update = as_matrix(before - kernel.detach(), kernel) / (0.2 * 36**0.5)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.5 and values.max() < 1.5


def test_the_order_of_memory_changes_no_step() -> None:
    updates = []
    for channels_last in (False, True):
        learner = unet(channels_last)
        kernel = learner["unet"]["conv"].weight  # type: ignore[index]
        before = kernel.detach().clone()
        optimizers = optimizers_of(learner, MUON, {})
        fill_gradients(learner)
        optimizers[0].step()
        updates.append(before - kernel.detach())
    assert (updates[0] - updates[1]).norm() < 0.05 * updates[0].norm()  # bf16, in another order


def test_gradients_are_forgotten() -> None:
    learner = unet()
    optimizers = optimizers_of(learner, MUON, {})
    fill_gradients(learner)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in learner.parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@torch.no_grad()
def test_a_state_comes_back_in_the_order_of_the_weights(name: str, tmp_path: Path) -> None:
    """A fused optimiser on a card takes moments only as its parameters lie in memory."""
    learner, run = unet(channels_last=True), Run(steps=1, batch_size=1, optimizer=name)
    mean, optimizers = EMA(learner, 0.9), optimizers_of(learner, run, {})
    fill_gradients(learner)
    for optimizer in optimizers:
        optimizer.step()
    file = tmp_path / "state.safetensors"
    save_state(file, 1, 2.0, learner, mean, optimizers)
    again = optimizers_of(learner, run, {})
    assert load_state(file, learner, mean, again) == (1, 2.0)
    for old, new in zip(optimizers, again, strict=True):
        pairs = [
            (a, b)
            for one, other in zip(old.param_groups, new.param_groups, strict=True)
            for a, b in zip(one["params"], other["params"], strict=True)
        ]
        assert len(pairs) == len(old.state) == len(new.state)
        for a, b in pairs:
            assert old.state[a].keys() == new.state[b].keys()
            for key, value in old.state[a].items():
                assert torch.equal(new.state[b][key], value)
                assert not value.ndim or new.state[b][key].stride() == b.stride()
