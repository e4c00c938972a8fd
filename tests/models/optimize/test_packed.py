"""Packed layers compute what their unpacked weights do, some rows at a time."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.models.optimize.test_cpu import draw
from txt2img.models.layers import Conv2d, Linear
from txt2img.models.optimize import packed
from txt2img.models.optimize.cpu import CpuPlan, optimize
from txt2img.models.optimize.packed import pack
from txt2img.weights.formats.dequantize import dequantize, dequantize_into
from txt2img.weights.formats.quantize_blocks import ENCODERS, quantize

LAYERS = {
    "linear": (Linear(96, 80), (2, 5, 96)),
    "no bias": (Linear(96, 80, bias=False), (3, 96)),
    "pointwise": (Conv2d(96, 80, 1), (2, 96, 6, 7)),
    "strided": (Conv2d(64, 80, 3, stride=2, padding=1), (1, 64, 9, 6)),
    "small map": (Conv2d(64, 80, 3, padding=1), (2, 64, 5, 4)),
    "large map": (Conv2d(64, 80, 3, padding=1), (2, 64, 17, 20)),
    "in groups": (Conv2d(128, 80, 3, padding=1, groups=2), (2, 128, 5, 4)),
}


def packed_layer(plain: Linear | Conv2d, kind: str) -> tuple[Linear | Conv2d, Tensor]:
    """A copy of a layer with its weight in blocks of a type, and the weight that they are."""
    values = ENCODERS[kind][0]
    blocks = quantize(plain.weight.detach().flatten(), kind)
    weight = dequantize(blocks, kind, values).view_as(plain.weight)
    layer = deepcopy(plain)
    pack(layer, tuple(blocks.shape), lambda part, out: dequantize_into(part, kind, out))
    layer.weight = nn.Parameter(blocks.view(torch.int8), requires_grad=False)
    return layer, weight


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("plan", [None, CpuPlan(evaluations=30)])
@torch.inference_mode()
def test_some_rows_at_a_time_give_the_same(
    name: str, kind: str, plan: CpuPlan | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not blocks end where rows do; the picture's layout is its own affair."""
    monkeypatch.setattr(packed, "ROWS_VALUES", 4000)
    monkeypatch.setattr(packed, "TRANSFORMED", 20000)
    plain, shape = LAYERS[name]
    layer, weight = packed_layer(plain, kind)
    optimize(nn.Sequential(nn.Linear(1, 1), layer), plan)
    x = draw(*shape)
    if isinstance(plain, Linear):
        expected = functional.linear(x, weight, plain.bias)
    else:
        places = plain.stride, plain.padding, plain.dilation, plain.groups
        expected = functional.conv2d(x, weight, plain.bias, *places)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_gradients_of_inputs_pass_through() -> None:
    """As trainings of adapters need; memory that is used again would change under them."""
    layer, weight = packed_layer(LAYERS["linear"][0], "Q8_0")
    x = draw(3, 96).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, -1), atol=1e-5, rtol=1e-5)
