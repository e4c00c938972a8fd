"""The running mean of weights."""

import torch
from torch import nn

from txt2img.train.ema import EMA


def one(value: float) -> nn.Linear:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def test_it_follows_the_ramped_mean_in_closed_form() -> None:
    module, decay = one(0.0), 0.9
    mean = EMA(module, decay)
    expected = 0.0
    for step in range(200):
        nn.init.constant_(module.weight, float(step))
        mean.update(module, step)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * step
    assert torch.allclose(mean.mean["weight"], torch.tensor([[expected]]), rtol=1e-5)


def test_two_swaps_put_everything_back() -> None:
    module = one(1.0)
    mean = EMA(module, 0.5)
    nn.init.constant_(module.weight, 3.0)
    mean.swap(module)
    assert module.weight.item() == 1.0
    assert mean.mean["weight"].item() == 3.0
    mean.swap(module)
    assert module.weight.item() == 3.0
