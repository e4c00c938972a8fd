"""Noise as other programs draw it."""

import math

import pytest
import torch

from txt2img.diffusion.rng import Philox, noise_source, slerp
from txt2img.errors import BadRequest
from txt2img.pipeline.noise import fresh_noise
from txt2img.request import Compat, Request
from txt2img.request.compat import rules

CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


def drawn(request: Request, times: int = 2) -> list[torch.Tensor]:
    """The first noises of a request."""
    noise = fresh_noise([request], rules(request), SHAPE, CPU)
    return [noise()[0] for _ in range(times)]


def cpu(seed: int, times: int = 2) -> list[torch.Tensor]:
    """What torch draws."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(times)]


def test_philox_gives_the_numbers_that_a1111_publishes() -> None:
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    assert torch.allclose(Philox(0).randn((3, 4)), torch.tensor(expected), atol=1e-6)


def test_philox_draws_anew_at_each_call_and_uses_the_whole_seed() -> None:
    generator = Philox(2**32 + 5)
    first, second = generator.randn((64,)), generator.randn((64,))
    assert not torch.equal(first, second)
    assert not torch.equal(first, Philox(5).randn((64,)))
    assert torch.equal(first, Philox(2**32 + 5).randn((64,)))


def test_a_small_card_gives_the_same_up_to_its_threads_then_the_pairs() -> None:
    """Box and Muller's two numbers of one thread share a radius, known from the uniform one."""
    large, small = Philox(3).randn((40,)), Philox(3, threads=16).randn((40,))
    assert torch.equal(small[:16], large[:16])
    assert not torch.equal(small[16:], large[16:])
    # the next call goes on after as many rounds as were needed
    twice = Philox(3, threads=16)
    twice.randn((65,))
    assert twice.round == 2


def test_philox_is_normal() -> None:
    numbers = Philox(1, threads=256).randn((50_000,))
    assert abs(float(numbers.mean())) < 4 / math.sqrt(50_000)
    assert abs(float(numbers.std()) - 1) < 0.02


@pytest.mark.parametrize("compat", [None, Compat.A1111, Compat.DIFFUSERS, Compat.INVOKEAI])
def test_these_programs_draw_all_noise_from_one_cpu_generator(compat: Compat | None) -> None:
    assert all(map(torch.equal, drawn(Request("", seed=5, compat=compat)), cpu(5)))


@pytest.mark.parametrize("compat", [Compat.A1111_GPU, Compat.SDCPP])
def test_these_programs_draw_all_noise_as_a_card(compat: Compat) -> None:
    card = Philox(5)
    expected = [card.randn(SHAPE), card.randn(SHAPE)]
    assert all(map(torch.equal, drawn(Request("", seed=5, compat=compat)), expected))


def test_comfyui_draws_the_first_noise_on_the_cpu_and_the_others_on_the_card() -> None:
    first, second = drawn(Request("", seed=5, compat=Compat.COMFYUI))
    assert torch.equal(first, cpu(5)[0])
    assert torch.equal(second, Philox(5).randn(SHAPE))


def test_novelai_draws_step_noise_from_another_seed() -> None:
    first, second = drawn(Request("", seed=5, compat=Compat.NOVELAI))
    assert torch.equal(first, Philox(5).randn(SHAPE))
    assert torch.equal(second, Philox(5 + 31337).randn(SHAPE))


def test_a_second_seed_is_mixed_into_the_first_noise_only() -> None:
    first, second = drawn(Request("", seed=5, subseed=9, subseed_strength=0.25))
    assert torch.equal(first, slerp(0.25, cpu(5)[0], cpu(9)[0]))
    assert torch.equal(second, cpu(5)[1])
    whole = drawn(Request("", seed=5, subseed=9, subseed_strength=1.0))[0]
    assert torch.allclose(whole, cpu(9)[0], atol=1e-5)


def test_slerp_keeps_lengths() -> None:
    a = torch.tensor([[[1.0], [0.0]]])
    b = torch.tensor([[[0.0], [1.0]]])
    third = slerp(1 / 3, a, b).flatten()
    assert torch.allclose(third, torch.tensor([math.cos(math.pi / 6), math.sin(math.pi / 6)]))


def test_a_strength_without_a_second_seed_is_refused() -> None:
    with pytest.raises(BadRequest, match="--subseed"):
        drawn(Request("", seed=5, subseed_strength=0.5))


def test_every_name_has_rules() -> None:
    for compat in set(Compat) - {Compat.TXT2IMG}:
        found = rules(Request("", compat=compat, clip_skip=2))
        assert found.prompt.clip_skip == 2
        assert noise_source(found.init_rng, 1, SHAPE)().shape == SHAPE
