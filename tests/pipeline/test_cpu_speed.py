"""What is made quick: as memory allows, once a model, and never with --low-memory."""

from collections import deque
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.pipeline.test_generate import SMALL, mock
from txt2img.diffusion.conditioning import Cond
from txt2img.models.configs import UNetConfig, ZImageConfig
from txt2img.models.layers import Conv2d
from txt2img.models.optimize.cpu import CpuPlan, FastConv, bytes_needed
from txt2img.models.unet import UNet
from txt2img.models.z_image import ZImageTransformer
from txt2img.pipeline import cpu_speed
from txt2img.pipeline.generate import decode, sample
from txt2img.request import Request, Sampler
from txt2img.system import resources
from txt2img.weights.model import Model

__all__ = ["mock"]
LATENT = (4, 32, 32)
CONFIG = UNetConfig(
    channels=(64, 64), layers=1, attention=(False, True), depth=(1, 1), heads=(2, 2), cross_dim=8
)


@pytest.fixture
def drawing(mock: Model) -> Model:
    """A mock model with a network of convolutions."""
    torch.manual_seed(0)
    mock.network = UNet(CONFIG)
    return mock


def plans(model: Model) -> set[CpuPlan]:
    """What the network's convolutions go by."""
    return {
        layer.optimized.plan
        for layer in model.network.modules()
        if isinstance(layer, Conv2d) and isinstance(layer.optimized, FastConv)
    }


def request(**changes: object) -> Request:
    """The small request, otherwise."""
    changed: Request = replace(SMALL, **changes)  # type: ignore[arg-type]
    return changed


def test_some_samplers_evaluate_the_network_twice_a_step(drawing: Model) -> None:
    cpu_speed.prepare_network(drawing, request(steps=7, sampler=Sampler.EULER), LATENT)
    assert plans(drawing) == {CpuPlan(evaluations=7)}
    cpu_speed.prepare_network(drawing, request(steps=7, sampler=Sampler.HEUN), LATENT)
    assert plans(drawing) == {CpuPlan(evaluations=14)}
    assert not drawing.memory.pop_warnings()


def test_with_little_memory_small_filters_are_left_out_then_all(drawing: Model) -> None:
    best = CpuPlan(evaluations=7)
    needs = [
        bytes_needed(drawing.network, 32, 32, plan)
        for plan in (best, CpuPlan(7, pack=False), CpuPlan(7, winograd_side=32, pack=False))
    ]
    assert needs[0] > needs[1] > needs[2] > 0
    drawing.memory.cpu_budget = int(needs[1] / cpu_speed.NETWORK) + 2
    cpu_speed.prepare_network(drawing, request(steps=7, sampler=Sampler.EULER), LATENT)
    assert plans(drawing) == {CpuPlan(7, pack=False)}
    drawing.memory.cpu_budget = int(needs[2] / cpu_speed.NETWORK) + 2
    cpu_speed.prepare_network(drawing, request(steps=7, sampler=Sampler.EULER), LATENT)
    assert plans(drawing) == {CpuPlan(7, winograd_side=32, pack=False)}
    drawing.memory.cpu_budget = 0
    cpu_speed.prepare_network(drawing, request(steps=7, sampler=Sampler.EULER), LATENT)
    assert not plans(drawing)
    assert all("B less" in line for line in drawing.memory.pop_warnings())


def test_freed_memory_is_kept_where_there_is_enough(
    drawing: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    for name in ("trim_heap", "keep_heap"):
        monkeypatch.setattr(resources, name, partial(called.append, name))
    cpu_speed.prepare_network(drawing, request(steps=7), LATENT)
    assert called == ["trim_heap", "keep_heap"]
    drawing.memory.cpu_budget = 0
    cpu_speed.prepare_network(drawing, request(steps=7), LATENT)
    assert called == ["trim_heap", "keep_heap"]


def test_room_is_asked_for_once_a_model(drawing: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_speed.prepare_network(drawing, request(steps=7), LATENT)
    monkeypatch.setattr(resources, "available", lambda: 0)
    cpu_speed.prepare_network(drawing, request(steps=7), LATENT)
    assert plans(drawing) == {CpuPlan(evaluations=7)}


def test_low_memory_keeps_no_second_weights(drawing: Model) -> None:
    cpu_speed.prepare_network(drawing, request(steps=7), LATENT)
    drawing.memory.low_memory = True
    cpu_speed.prepare_network(drawing, request(steps=7), LATENT)
    assert not plans(drawing)
    assert not drawing.memory.pop_warnings()


def latents(model: Model, *wishes: Request) -> Tensor:
    [state] = deque(sample(model, wishes), maxlen=1)
    return state.x


def test_a_picture_is_the_same_whatever_is_drawn_before_and_beside_it(drawing: Model) -> None:
    class Words:
        def chunk_count(self, prompt: str, rules: object) -> int:
            return 1

        def encode(self, prompts: list[str], chunks: int, rules: object) -> Cond:
            made = torch.Generator().manual_seed(len(prompts[0]))
            return Cond(torch.randn(1, 5, 8, generator=made))

    drawing.text = Words()  # type: ignore[assignment]
    one = request(width=128, height=128, steps=4, prompt="a cat", seed=1)
    two = replace(one, prompt="two dogs", seed=2)
    alone = latents(drawing, two)
    other = latents(drawing, request(width=256, height=136, steps=1, prompt="x", seed=3))
    assert other.shape[-2:] == (17, 32)
    assert torch.equal(latents(drawing, one, two)[1:], alone)
    drawing.network = UNet(CONFIG)
    torch.manual_seed(0)
    drawing.network.load_state_dict(UNet(CONFIG).state_dict())
    assert torch.equal(latents(drawing, two, one)[:1], alone)
    drawing.memory.low_memory = True
    torch.testing.assert_close(latents(drawing, two), alone, atol=2e-3, rtol=0)


def test_a_decoder_is_made_quick_for_the_pictures_size(
    mock: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def need(network: object, height: int, width: int, plan: CpuPlan) -> int:
        asked.append((height, width))
        return 0

    monkeypatch.setattr(cpu_speed, "bytes_needed", need)
    decode(mock, torch.zeros(1, 4, 8, 16), request())
    assert asked[0] == (64, 128)


def test_a_transformers_matrices_have_no_copies(mock: Model) -> None:
    config = ZImageConfig(layers=1, refiner_layers=1, heads=1, cross_dim=8)
    mock.network = ZImageTransformer(config).bfloat16()
    mock.family = replace(mock.family, network=config)
    cpu_speed.prepare_network(mock, request(steps=7), LATENT)
    assert all(getattr(layer, "optimized", None) is None for layer in mock.network.modules())
