"""Brownian paths: against torchsde, k-diffusion's formulas, and the laws of Brownian motion."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.support.mixture import mixture, pictures
from txt2img.diffusion.brownian import BrownianPath, BrownianTree, brownian_tree, seed_of
from txt2img.diffusion.levels import Diffusion, Level, betas
from txt2img.diffusion.rng import Philox
from txt2img.diffusion.samplers import SAMPLERS
from txt2img.diffusion.schedules import SCHEDULES
from txt2img.pipeline.noise import brownian_path, step_noise
from txt2img.request import Request, Sampler
from txt2img.request.compat import rules

SD = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
LEVELS = SCHEDULES["karras"](SD, 8)
CPU = torch.device("cpu")
SHAPE = (4, 8, 8)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(seed: int) -> BrownianPath:
    """A path of many numbers, to measure."""
    return BrownianPath(partial(draw, shape=(40_000,)), seed)


def at(ratio: float) -> Level:
    return Level(ratio, "diffusion")


def test_the_tree_equals_torchsdes() -> None:
    torchsde = pytest.importorskip("torchsde")
    own = brownian_tree(draw, 123_456_789, LEVELS)
    start, end = (torch.tensor(ratio) for ratio in (own.start, own.end))
    theirs = torchsde.BrownianTree(start, torch.zeros(SHAPE), end, entropy=123_456_789)
    for a, b in itertools.pairwise(LEVELS):
        high, low = torch.tensor(a.ratio).clamp(max=own.end), torch.tensor(b.ratio)
        want = -theirs(low, high) / (high - low).sqrt()
        torch.testing.assert_close(own(a, b), want, atol=2e-5, rtol=1e-4)


def test_the_tree_equals_recorded_numbers_of_torchsde() -> None:
    """What torchsde 0.2.6 gives for seed 5, from 14.5 to 0.5, wherever it is installed or not."""
    own = BrownianTree(partial(draw, shape=(2, 2, 2)), 5, 0.5, 14.5)
    got = [own(at(a), at(b)).flatten()[:3].tolist() for a, b in ((14.5, 6.25), (6.25, 1.2))]
    expected = ([-0.458575, 0.429786, -0.529613], [-0.475709, -0.565237, 1.077712])
    assert got == [pytest.approx(row, abs=2e-5) for row in expected]


@pytest.mark.parametrize("make", [wide, lambda seed: BrownianTree(wide(0).draw, seed, 0.02, 15.0)])
def test_noise_is_normal_and_differs_between_intervals(make) -> None:
    path = make(1)
    ratios = [14.0, 13.9, 6.0, 2.0, 0.5, 0.1, 0.03]
    noises = [path(at(a), at(b)) for a, b in itertools.pairwise(ratios)]
    for noise in noises:
        assert abs(float(noise.mean())) < 0.025
        assert float(noise.std()) == pytest.approx(1, abs=0.02)
    table = torch.corrcoef(torch.stack(noises))
    assert float((table - torch.eye(len(noises))).abs().max()) < 0.03
    assert not torch.allclose(make(2)(at(14.0), at(6.0)), path(at(14.0), at(6.0)), atol=0.1)


@pytest.mark.parametrize("make", [wide, lambda seed: BrownianTree(wide(0).draw, seed, 0.02, 15.0)])
def test_an_interval_has_the_same_noise_whatever_was_asked_before(make) -> None:
    busy = make(3)
    for a, b in ((9.0, 4.0), (4.0, 1.0), (1.0, 0.05)):
        busy(at(a), at(b))
    torch.testing.assert_close(busy(at(5.0), at(0.7)), make(3)(at(5.0), at(0.7)))


def test_two_steps_add_the_noise_of_one_over_both() -> None:
    """On the clock of the signal-to-noise ratio, whose increments the solver adds."""
    path, ratios = wide(4), (7.0, 3.0, 0.4)
    times = [ratio**-2 for ratio in ratios]
    first, second = path(at(7.0), at(3.0)), path(at(3.0), at(0.4))
    both = first * math.sqrt(times[1] - times[0]) + second * math.sqrt(times[2] - times[1])
    whole = path(at(7.0), at(0.4)) * math.sqrt(times[2] - times[0])
    torch.testing.assert_close(both, whole, atol=1e-4, rtol=1e-4)


def test_pure_noise_and_nearly_clean_pictures_have_noise() -> None:
    path = wide(5)
    for a, b in ((math.inf, 9.0), (math.inf, 4e6), (1e-4, 1e-6), (3.0, 2.9999)):
        noise = path(at(a), at(b))
        assert float(noise.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["dpm++2m_sde", "dpm++sde"])
def test_more_steps_converge_to_one_picture(name: str) -> None:
    """With fresh noise, each number of steps would give another picture."""
    denoise, x = mixture(0.6 * pictures(), 0.4), draw(1, (2, 4, 4, 4))

    def end(steps: int, seed: int = 7) -> Tensor:
        levels = [level for level in SCHEDULES["karras"](SD, steps) if level.ratio]
        path = BrownianPath(partial(draw, shape=(2, 4, 4, 4)), seed)
        *_, last = SAMPLERS[name](denoise, x, levels, path)
        return last.x

    best = end(64)
    near, far = float((end(24) - best).norm()), float((end(6) - best).norm())
    assert near < far / 2
    assert near < float((end(24, seed=8) - best).norm()) / 3


def test_dpmpp_sde_equals_k_diffusion_with_its_tree() -> None:
    """Its sample_dpmpp_sde at r = 1/2, eta = 1, written out for sigmas."""
    denoise, noise = (
        mixture(0.6 * pictures(), 0.4),
        BrownianTree(partial(draw, shape=(1, 4, 4, 4)), 9, 0, 15),
    )
    levels = [at(ratio) for ratio in (14.0, 6.0, 2.0, 0.5)]
    y = draw(2, (1, 4, 4, 4)) * 14.0  # its x is ours / alpha
    start = levels[0].alpha * y
    *_, last = SAMPLERS["dpm++sde"](denoise, start, levels, noise)

    def evaluate(y: Tensor, level: Level) -> Tensor:
        return denoise(level.alpha * y, level)

    def step(y: Tensor, aim: Tensor, a: Level, b: Level) -> Tensor:
        up = math.sqrt(b.ratio**2 * (a.ratio**2 - b.ratio**2) / a.ratio**2)
        down = math.sqrt(b.ratio**2 - up**2)
        return down / a.ratio * (y - aim) + aim + noise(a, b) * up

    for a, b in itertools.pairwise(levels):
        half = at(math.sqrt(a.ratio * b.ratio))
        y = step(y, evaluate(step(y, evaluate(y, a), a, half), half), a, b)
    torch.testing.assert_close(last.x, levels[-1].alpha * y, atol=1e-5, rtol=1e-4)


SDE = Request("", seed=5, sampler=Sampler.DPMPP_2M_SDE)


def noises(requests: list[Request]) -> Tensor:
    """The noise of the second step."""
    fresh = partial(torch.full, (len(requests), *SHAPE), 7.0)
    return step_noise(requests, rules(requests[0]), LEVELS, SHAPE, CPU, fresh)(LEVELS[1], LEVELS[2])


def of(**more: object) -> Request:
    return Request.from_json({**SDE.to_json(), **more})


@pytest.mark.parametrize("compat", [None, "a1111", "comfyui"])
def test_a_picture_has_its_own_path_in_every_batch(compat: str | None) -> None:
    three = [of(compat=compat, seed=seed) for seed in (4, 5, 6)]
    together = noises(three)
    for i, request in enumerate(three):
        torch.testing.assert_close(together[i], noises([request])[0], rtol=0, atol=0)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_each_program_draws_from_its_own_source() -> None:
    a, b = LEVELS[1], LEVELS[2]
    by_cpu = brownian_tree(draw, 5, LEVELS)(a, b)
    by_card = brownian_tree(lambda seed: Philox(seed).randn(SHAPE), 5, LEVELS)(a, b)
    torch.testing.assert_close(noises([of(compat="a1111", ensd=31337)])[0], by_cpu)
    torch.testing.assert_close(noises([of(compat="comfyui")])[0], by_cpu)
    torch.testing.assert_close(noises([of(compat="a1111-gpu")])[0], by_card)
    torch.testing.assert_close(noises([of(compat=None)])[0], BrownianPath(draw, 5)(a, b))
    for other in (of(compat="diffusers"), of(compat="sdcpp"), of(sampler="euler_a")):
        assert noises([other]).unique().tolist() == [7.0]  # fresh at each call


def test_from_pure_noise_our_path_replaces_the_tree() -> None:
    levels = [Level(math.inf, "diffusion"), *LEVELS]
    request = of(compat="a1111")
    assert isinstance(brownian_path(request, rules(request), levels, SHAPE), BrownianPath)
    assert isinstance(brownian_path(request, rules(request), LEVELS, SHAPE), BrownianTree)


def test_seeds_equal_numpys() -> None:
    assert seed_of(5) != seed_of(6) and seed_of(5, 0) != seed_of(5, 0, 0)
    assert all(0 <= seed_of(2**64 - 1, node) < 2**32 for node in range(5))
