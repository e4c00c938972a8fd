"""Weights that stay as they are stored give the same bits as weights that are upcast once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from tests.pipeline.test_generate import SMALL
from txt2img.errors import BadRequest
from txt2img.models.layers import Conv2d, FeedForward, Linear
from txt2img.models.optimize import upcast
from txt2img.models.optimize.cpu import CpuPlan, FastConv, optimize
from txt2img.models.optimize.upcast import (
    keep_stored_dtype,
    stored_dtype_weights,
    upcast_conv2d,
)
from txt2img.pipeline.generate import generate
from txt2img.request.adapters import Lora
from txt2img.system.device.device import choose
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.load import load


@pytest.fixture(params=[torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def stored(request: pytest.FixtureRequest, sd1_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with its weights stored in a narrow type."""
    for path in sd1_folder.rglob("*"):
        target = tmp_path / path.relative_to(sd1_folder)
        if path.is_dir():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            narrow = {
                n: t.to(request.param) if t.is_floating_point() else t for n, t in tensors.items()
            }
            save_file(narrow, target)
        else:
            target.write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.usefixtures("as_written")
def test_bits_are_those_of_the_ordinary_load(stored: Path) -> None:
    plain = load(str(stored), choose("cpu"))
    low = load(str(stored), replace(choose("cpu"), low=True))
    request = replace(SMALL, steps=1)
    [a], [b] = generate(request, plain), generate(request, low)
    assert a.tobytes() == b.tobytes()
    for part in ("network", "vae"):
        weights = list(getattr(low, part).parameters())
        assert sum(p.nbytes for p in weights) < 0.6 * 4 * sum(p.numel() for p in weights)
    low.adapters.paths = replace(low.adapters.paths, loras={"x": stored / "x.safetensors"})
    with pytest.raises(BadRequest, match="low-memory"):
        resolve_adapters(low, replace(SMALL, loras=(Lora("x"),)))


@pytest.mark.parametrize("layer", [Linear(6, 10), Linear(6, 10, bias=False)])
@torch.no_grad()
def test_a_linear_layer_in_parts_is_the_same(
    layer: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = layer.bfloat16(), torch.randn(2, 3, 6)
    bias = None if layer.bias is None else layer.bias.float()
    layer.bias = None if bias is None else nn.Parameter(bias)
    network = nn.Sequential(layer)
    keep_stored_dtype(network)
    monkeypatch.setattr(upcast, "PIECE", 4 * 6 * 3)  # three of its rows
    whole = functional.linear(x, layer.weight.float(), bias)
    torch.testing.assert_close(network(x), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("groups", "kernel"), [(1, 3), (1, 1), (2, 3)])
@torch.no_grad()
def test_a_convolution_in_parts_is_the_same(
    groups: int, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Conv2d(4, 10, kernel, stride=2, padding=1, groups=groups)
    x, weight = torch.randn(2, 4, 9, 7), layer.weight.bfloat16()
    layer.weight = nn.Parameter(weight)
    network = nn.Sequential(layer)
    keep_stored_dtype(network)
    monkeypatch.setattr(upcast, "PIECE", 4 * weight[0].numel() * 3)
    whole = functional.conv2d(x, weight.float(), layer.bias, 2, 1, 1, groups)
    torch.testing.assert_close(network(x), whole, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_feed_forward_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = nn.Sequential(FeedForward(8)), torch.randn(2, 7, 8)
    whole = network(x)
    keep_stored_dtype(network)
    monkeypatch.setattr(upcast, "TOKENS", 4)
    torch.testing.assert_close(network(x), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_an_optimised_filter_in_its_stored_dtype_gives_the_same(dtype: torch.dtype) -> None:
    layer = Conv2d(64, 64, 3, padding=1)
    layer.weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
    first = Conv2d(64, 64, 1)  # in float32: a network is asked for its precision there
    network = nn.Sequential(first, layer)
    keep_stored_dtype(network, filters_only=True)
    assert first.optimized is None and layer.optimized is upcast_conv2d
    for side, evaluations in ((32, 30), (4, 30), (4, 1), (80, 1)):  # each way to do it
        x = torch.randn(1, 64, side, side)
        own = network(x)
        optimize(network, CpuPlan(evaluations))
        assert isinstance(layer.optimized, FastConv)
        torch.testing.assert_close(network(x), own, atol=2e-5, rtol=0)
        optimize(network)
        assert layer.optimized is upcast_conv2d and layer.weight.dtype == dtype


def test_filters_keep_their_stored_dtype_and_a_lora_in_one_is_not_rounded(stored: Path) -> None:
    model = load(str(stored), choose("cpu"))
    narrow = stored_dtype_weights(model.network)
    assert narrow
    for name, weight in model.network.named_parameters():
        assert (weight.dtype == torch.float32) != (name in narrow)
    own = {n: p.detach().clone() for n, p in model.network.named_parameters()}
    home = "down_blocks.0.resnets.0.conv1"
    out, channels = own[f"{home}.weight"].shape[:2]
    tensors = {
        f"lora_unet_{home.replace('.', '_')}.lora_down.weight": torch.randn(2, channels, 3, 3),
        f"lora_unet_{home.replace('.', '_')}.lora_up.weight": torch.randn(out, 2, 1, 1),
    }
    save_file(tensors, stored / "x.safetensors")
    model.adapters.paths = replace(model.adapters.paths, loras={"x": stored / "x.safetensors"})
    down, up = tensors.values()
    x, time, cond = torch.randn(1, 4, 16, 16), torch.full((1,), 400.0), model.text.encode(["a"])
    with torch.inference_mode():
        optimize(model.network, CpuPlan(30))
        model.network(x, time, cond)
        apply_adapters(model, resolve_adapters(model, replace(SMALL, loras=(Lora("x", 0.1, 0.1),))))
        fast = model.network(x, time, cond)
        optimize(model.network)
        torch.testing.assert_close(fast, model.network(x, time, cond), atol=1e-4, rtol=0)
    merged = model.network.get_parameter(f"{home}.weight")
    added = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
    before = own[f"{home}.weight"].float()
    torch.testing.assert_close(merged, before + 0.1 * added, atol=1e-5, rtol=0)
    apply_adapters(model, resolve_adapters(model, SMALL))
    for name, weight in model.network.named_parameters():
        assert torch.equal(weight.float(), own[name].float())
