"""What the stages learn from: which rows, at which times."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from accelerate import Accelerator

from txt2img.diffusion.levels import Diffusion, Flow, betas
from txt2img.train.config import TrainConfig
from txt2img.train.data import Layer, Pictures, Row
from txt2img.train.stages import BalancedSampler, sample_time

TABLE = Diffusion(betas("scaled_linear", 1000, 0.00085, 0.012))


@pytest.mark.parametrize("noisy", [0.0, 1.5])
@pytest.mark.parametrize("process", [TABLE, Flow()], ids=["diffusion", "flow"])
def test_times_are_spread_as_a_power(process: Diffusion | Flow, noisy: float) -> None:
    """The mean of a density that grows as t^n on 0 … 1 is (n + 1) / (n + 2)."""
    rng = random.Random(0)
    times = [sample_time(process, TrainConfig(time_bias=noisy), rng) for _ in range(20_000)]
    assert min(times) >= 0 and max(times) <= 1000
    assert sum(times) / len(times) == pytest.approx(1000 * (noisy + 1) / (noisy + 2), rel=0.01)


def test_low_noise_puts_times_where_outlines_are_made() -> None:
    """Half lie around 1000 · sigmoid(−1.3), and the rest anywhere."""
    rng, config = random.Random(0), TrainConfig(low_noise_share=0.5)
    times = sorted(sample_time(TABLE, config, rng) for _ in range(20_000))
    assert times[0] >= 0 and times[-1] <= 999
    assert sum(t > 850 for t in times) / len(times) == pytest.approx(0.5 * 0.15, abs=0.006)
    only = replace(config, low_noise_share=1.0)
    low = sorted(sample_time(TABLE, only, rng) for _ in range(20_000))
    assert low[10_000] == pytest.approx(1000 / (1 + math.exp(1.3)), rel=0.03)
    assert low[3_174] == pytest.approx(1000 / (1 + math.exp(1.3 + 0.8)), rel=0.04)  # one sigma


class Plain:
    """In place of an accelerator: one process."""

    num_processes, process_index = 1, 0


def rows(*sides: float) -> Pictures:
    """Rows of one thing each, as large as said, without pictures."""
    made = [Row((Layer("a.png", side=side),), ("a",), (1.0,)) for side in sides]
    return cast(Pictures, SimpleNamespace(rows=made))


def test_every_batch_has_its_part_of_single_things_and_all_rows_come() -> None:
    choose = BalancedSampler(rows(1.0, 0.5, 1.0, 0.4, 0.5, 0.5), 0.25)
    batches = [choose(cast(Accelerator, Plain), 4, step, seed=0) for step in range(8)]
    assert all(sum(n in (0, 2) for n in batch) == 1 for batch in batches)
    assert {n for batch in batches for n in batch} == set(range(6))


@pytest.mark.parametrize("sides", [(1.0, 1.0), (0.5, 0.5)])
def test_data_of_one_sort_comes_as_it_is(sides: tuple[float, ...]) -> None:
    picked = BalancedSampler(rows(*sides), 0.25)(cast(Accelerator, Plain), 4, 0, seed=0)
    assert sorted(picked) == [0, 0, 1, 1]
