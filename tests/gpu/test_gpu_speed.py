"""Optimisations on a CUDA card are at work, and change no picture beyond rounding."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.test_gpu import APPLE, psnr
from txt2img.models.layers import attention
from txt2img.models.optimize.cuda_graph import CudaGraphed
from txt2img.pipeline.batch_size import MAX_BATCH, auto_batch_size
from txt2img.pipeline.generate import decode, generate, prepare, ready_to_draw, sample
from txt2img.request import Request, Sampler
from txt2img.system.device.device import Device, choose
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load
from txt2img.weights.model import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_card(**how: object) -> Model:
    return load("default", replace(choose("cuda", "fp16"), **how))


def drawn(model: Model, request: Request = APPLE) -> np.ndarray:
    [image] = generate(request, model)
    return np.asarray(image, dtype=np.float64)


def plain() -> Model:
    """A model whose U-Net is run step by step."""
    model = on_card()
    model.graphed = None
    return model


def graphed(model: Model) -> CudaGraphed:
    assert model.graphed is not None
    return model.graphed


def test_the_u_net_is_recorded_once_a_shape_and_draws_the_same() -> None:
    model = on_card()
    pictures = [drawn(model, replace(APPLE, seed=seed)) for seed in (1, 2, 1)]
    assert not model.memory.pop_warnings()
    assert len(graphed(model)._recordings) == 1
    assert psnr(pictures[0], drawn(plain(), replace(APPLE, seed=1))) > 50
    assert np.array_equal(pictures[0], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])


def test_convolutions_are_laid_out_channels_last() -> None:
    model = on_card()
    for network in (model.network, model.vae):
        weights = [weight for weight in network.parameters() if weight.dim() == 4]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize("width", [40, 64, 80, 160])
def test_attention_takes_flash_kernels(width: int) -> None:
    q, k, v = (torch.randn(2, 256, 8 * width, device="cuda", dtype=torch.float16) for _ in "qkv")
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        assert bool(torch.isfinite(attention(q, k, v, 8)).all())


def test_the_host_is_not_waited_for_between_steps() -> None:
    model = on_card()
    request = replace(APPLE, sampler=Sampler.DPMPP_2M)
    request = resolve_adapters(model, request).seeded().filled(model.family.defaults)
    job = prepare(model, [request])
    ready = ready_to_draw(model, job, torch.device("cuda"), torch.float16)
    with ready, torch.inference_mode():
        states = job.states()
        for _ in range(3):  # the first step records the network
            next(states)
        try:
            torch.cuda.set_sync_debug_mode("error")
            deque(states, maxlen=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_offloaded_parts_draw_the_same_bits(mode: str) -> None:
    model = on_card(offload=mode)
    assert next(model.network.parameters()).device.type == "cpu"
    assert np.array_equal(drawn(model), drawn(plain()))
    assert next(model.network.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("kind", "least"), [("int8", 25.0), ("fp8", 20.0)])
def test_quantised_weights_draw_nearly_the_same(kind: str, least: float) -> None:
    pytest.importorskip("torchao")
    assert psnr(drawn(on_card(quantize=kind)), drawn(plain())) > least


def test_a_compiled_u_net_draws_the_same_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = on_card(compile=True)
    assert psnr(drawn(model), drawn(plain())) > 35
    [line] = model.memory.pop_warnings()
    assert "compiled in" in line and str(tmp_path) in line
    assert any(tmp_path.iterdir())


def test_weights_on_a_card_equal_those_on_a_cpu() -> None:
    card = load("default", Device(torch.device("cuda"), torch.float32))
    cpu = load("default", choose("cpu", "float32"))
    for a, b in ((card.network, cpu.network), (card.vae, cpu.vae), (card.text, cpu.text)):
        for here, there in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.equal(here.cpu(), there)


def test_a_batch_draws_the_same_as_single_pictures() -> None:
    model = on_card()
    request = (
        resolve_adapters(model, replace(APPLE, count=4)).seeded().filled(model.family.defaults)
    )
    assert 1 <= auto_batch_size(model, [request]) <= MAX_BATCH
    requests = [request.nth(i) for i in range(4)]
    [state] = deque(sample(model, requests), maxlen=1)
    assert model.memory.used["batch"] == "4"
    for one, image in zip(requests, decode(model, state.x), strict=True):
        assert psnr(np.asarray(image, dtype=np.float64), drawn(model, one)) > 35
