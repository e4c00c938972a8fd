"""T2I-Adapters against diffusers, in both layouts, and the published names at full size."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import T2IAdapter as TheirAdapter
from torch import Tensor

from txt2img.models.t2i_adapter import T2IAdapter
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts.t2i_adapter import is_t2i_adapter, t2i_adapter_in

SMALL = (32, 64, 96, 96)
FULL = (320, 640, 1280, 1280)


def original(state: dict[str, Tensor], light: bool) -> dict[str, Tensor]:
    """TencentARC's names: no prefix; a full adapter's blocks are one list over all levels."""

    def rename(name: str) -> str:
        name = name.removeprefix("adapter.")
        if light:
            return name.replace(".resnets.", ".body.")
        name = re.sub(r"body\.(\d)\.in_conv", lambda m: f"body.{2 * int(m[1])}.in_conv", name)
        return re.sub(
            r"body\.(\d)\.resnets\.(\d)", lambda m: f"body.{2 * int(m[1]) + int(m[2])}", name
        )

    return {rename(name): value for name, value in state.items()}


def ours(state: dict[str, Tensor]) -> T2IAdapter:
    refs = {n: TensorRef(Path("f"), n, "F32", tuple(v.shape), 0) for n, v in state.items()}
    assert is_t2i_adapter(refs)
    config, part = t2i_adapter_in(refs, "f")
    with torch.device("meta"):
        network = T2IAdapter(config)
    own = {name: state[part.file_name(name)] for name in part.tensors}
    network.load_state_dict(own, assign=True)
    return network


CASES = [
    ("full_adapter", 2, 8, 3),
    ("full_adapter", 2, 8, 1),
    ("light_adapter", 4, 8, 3),
    ("full_adapter_xl", 2, 16, 3),
]


@torch.no_grad()
@pytest.mark.parametrize("diffusers", [True, False])
@pytest.mark.parametrize(("kind", "layers", "side", "inputs"), CASES)
def test_features_equal_diffusers(
    kind: str, layers: int, side: int, inputs: int, diffusers: bool
) -> None:
    torch.manual_seed(0)
    light = kind == "light_adapter"
    channels = SMALL[:3] if light else SMALL
    theirs = TheirAdapter(inputs, list(channels), layers, side, kind)
    state = dict(theirs.state_dict())
    network = ours(state if diffusers else original(state, light))
    pixels = torch.rand(1, inputs, 96, 160)
    given = pixels if inputs == 3 else pixels.expand(-1, 3, -1, -1)
    for got, wanted in zip(network(given), theirs(pixels), strict=True):
        assert torch.allclose(got, wanted, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("diffusers", [True, False])
@pytest.mark.parametrize(("kind", "layers", "side", "inputs"), CASES)
def test_published_names_at_full_size(
    kind: str, layers: int, side: int, inputs: int, diffusers: bool
) -> None:
    light = kind == "light_adapter"
    with torch.device("meta"):
        theirs = TheirAdapter(inputs, list(FULL[:3] if light else FULL), layers, side, kind)
    state = dict(theirs.state_dict())
    network = ours(state if diffusers else original(state, light))
    assert network.config.channels == FULL
    assert (network.config.unshuffle, network.config.in_channels) == (side, inputs)
