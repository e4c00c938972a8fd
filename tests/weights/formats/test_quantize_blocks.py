"""Values are quantised as ggml does it: bit for bit where the gguf package does, else as well."""

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from txt2img.weights.formats.dequantize import dequantize
from txt2img.weights.formats.quantize_blocks import ENCODERS, quantize

K_TYPES = ("Q4_K", "Q5_K", "Q6_K")


def weights(rows: int = 200) -> Tensor:
    """Values as networks have them, with outliers, groups of one sign, constants and zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 256, generator=generator) * 0.05
    x[1, 7] = 3.0
    x[2] = x[2].abs()
    x[3] = -x[3].abs()
    x[4], x[5] = 0.0, 0.25
    x[6] *= 1e-2
    return x


def error(x: Tensor, kind: str) -> float:
    found = dequantize(quantize(x.flatten(), kind), kind, ENCODERS[kind][0]).view_as(x)
    return float((found - x).norm() / x.norm())


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind not in K_TYPES])
def test_simple_types_are_the_packages_bit_for_bit(kind: str) -> None:
    theirs = gguf.quantize(weights().numpy(), GGMLQuantizationType[kind])
    ours = quantize(weights().flatten(), kind).reshape(200, -1)
    assert torch.equal(ours, torch.from_numpy(theirs))


@pytest.mark.parametrize("kind", K_TYPES)
def test_k_types_have_the_error_of_their_bits(kind: str) -> None:
    """On normal values, the bounds of the best numbers of a group's own exact scale.

    Blocks are read by the gguf package, so that bytes are where it looks for them.
    """
    x = torch.randn(400, 256, generator=torch.Generator().manual_seed(1))
    theirs = gguf.dequantize(quantize(x.flatten(), kind).numpy(), GGMLQuantizationType[kind])
    found = float((torch.from_numpy(theirs).view_as(x) - x).norm() / x.norm())
    plain = {"Q4_K": "Q4_1", "Q5_K": "Q5_1", "Q6_K": "Q5_0"}[kind]
    assert found == pytest.approx(error(x, kind))
    assert found < error(x, plain)
    assert found < {"Q4_K": 0.075, "Q5_K": 0.037, "Q6_K": 0.018}[kind]


@pytest.mark.parametrize("kind", K_TYPES)
def test_k_types_take_any_values(kind: str) -> None:
    x = weights()
    found = dequantize(quantize(x.flatten(), kind), kind, ENCODERS[kind][0]).view_as(x)
    assert bool(found.isfinite().all())
    assert not found[4].any()
    bits = int(kind[1])
    for row in (1, 2, 3, 5, 6):
        spread = x[row].amax().clamp(min=0) - x[row].amin().clamp(max=0)
        assert (found[row] - x[row]).abs().max() <= 1.1 * spread / 2**bits + 1e-6, row
