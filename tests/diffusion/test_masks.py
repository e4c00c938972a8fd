"""A masked denoiser keeps what is not masked, whatever the sampler."""

import pytest
import torch
from torch import Tensor

from txt2img.diffusion.levels import Diffusion, Flow, Level, Process, betas
from txt2img.diffusion.masks import Seen, by_threshold, masked
from txt2img.diffusion.samplers import SAMPLERS
from txt2img.diffusion.schedules import SCHEDULES

TABLE = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))
SHAPE = (1, 4, 6, 6)
MASK = torch.zeros(1, 1, 6, 6)
MASK[..., 3:] = 1.0


def randn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("process", [TABLE, Flow()], ids=["diffusion", "flow"])
def test_masked_keeps_what_is_outside(process: Process) -> None:
    for sampler in SAMPLERS:
        _check_masked(sampler, process)


def _check_masked(sampler: str, process: Process) -> None:
    schedule = "karras" if isinstance(process, Diffusion) else "flow"
    levels = SCHEDULES[schedule](process, 8)[3:]
    kept, first = randn(0), randn(1)
    seen: list[float] = []

    def denoise(x: Tensor, level: Level) -> Tensor:
        expected = level.alpha * kept + level.sigma * first
        seen.append(float((x - expected)[..., :3].abs().max()))
        return 0.3 * x

    draws = torch.Generator().manual_seed(2)
    wrapped = masked(denoise, lambda _: MASK, kept, first)
    x = levels[0].alpha * kept + levels[0].sigma * first
    *_, last = SAMPLERS[sampler](wrapped, x, levels, lambda *_: torch.randn(SHAPE, generator=draws))
    assert max(seen) < 1e-5, sampler
    assert torch.allclose(last.x0[..., :3], kept[..., :3]), sampler
    assert not torch.allclose(last.x[..., 3:], kept[..., 3:]), sampler


@pytest.mark.parametrize(("seen", "factor"), [("noised", None), ("clean", 0.0), ("free", 1.0)])
def test_what_the_network_sees_where_it_is_kept(seen: Seen, factor: float | None) -> None:
    kept, noise, x, level = randn(0), randn(1), randn(2), TABLE.level(500)
    got: list[Tensor] = []

    def denoise(sample: Tensor, _: Level) -> Tensor:
        got.append(sample)
        return torch.zeros_like(sample)

    out = masked(denoise, lambda _: MASK, kept, noise, seen)(x, level)
    expected = {
        "noised": level.alpha * kept + level.sigma * noise,
        "clean": kept,
        "free": x,
    }[seen]
    assert torch.allclose(got[0][..., :3], expected[..., :3])
    assert torch.equal(got[0][..., 3:], x[..., 3:])
    assert torch.equal(out[..., :3], kept[..., :3]) and not out[..., 3:].any()


def test_at_the_first_level_the_network_may_see_the_start() -> None:
    level, x = TABLE.level(999), randn(2)
    got: list[Tensor] = []
    denoise = masked(
        lambda sample, _: got.append(sample) or sample, lambda _: MASK, randn(0), x, first=level
    )
    denoise(x, level)
    assert torch.equal(got[0], x)


def test_a_soft_mask_grows_from_white_to_grey_and_never_to_black() -> None:
    soft = torch.tensor([0.0, 0.01, 0.5, 1.0])
    at = by_threshold(soft, TABLE, TABLE.level(800))
    assert at(TABLE.level(800)).tolist() == [0, 0, 0, 1]
    assert at(TABLE.level(401)).tolist() == [0, 0, 0, 1]
    assert at(TABLE.level(399)).tolist() == [0, 0, 1, 1]
    assert at(TABLE.level(0)).tolist() == [0, 1, 1, 1]
