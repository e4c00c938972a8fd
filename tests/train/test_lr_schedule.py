"""How long a stage learns, and how fast: by its steps or by the clock."""

import pytest
from accelerate import Accelerator

from txt2img.train import lr_schedule
from txt2img.train.config import Run
from txt2img.train.lr_schedule import StageClock, ends_piece, finished, learning_rate


def test_the_learning_rate_rises_then_falls_along_half_a_cosine() -> None:
    plan = Run(steps=110, warmup=10, lr=1.0, final_lr=0.1)
    rates = [learning_rate(plan, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates == rates[:10] + sorted(rates[10:], reverse=True)


def test_the_rate_falls_with_the_clock_where_that_is_sooner_over() -> None:
    plan = Run(steps=1000, minutes=2.0, warmup=0, lr=1.0, final_lr=0.1)
    assert learning_rate(plan, 10, 60.0) == pytest.approx(0.55)
    assert learning_rate(plan, 10, 120.0) == learning_rate(plan, 10, 500.0) == pytest.approx(0.1)
    assert learning_rate(plan, 500, 1.0) == pytest.approx(0.55)  # steps, on a quick machine


def test_a_piece_is_flat_then_falls_and_the_next_one_rises_again() -> None:
    plan = Run(steps=10**6, warmup=10, lr=1.0, final_lr=0.05, flat=0.6, piece_steps=1010)
    assert learning_rate(plan, 10) == learning_rate(plan, 600) == 1.0
    assert learning_rate(plan, 810) == pytest.approx(0.525)
    assert learning_rate(plan, 1009) == pytest.approx(0.05, abs=1e-3)
    assert learning_rate(plan, 1010) == learning_rate(plan, 0) == pytest.approx(0.1)
    assert [learning_rate(plan, step) for step in (1020, 1820)] == [1.0, learning_rate(plan, 810)]


def test_a_piece_ends_after_its_steps() -> None:
    plan = Run(piece_steps=10)
    assert [step for step in range(1, 31) if ends_piece(plan, step)] == [10, 20, 30]
    assert not ends_piece(Run(), 10)


def test_a_stage_is_done_by_steps_or_minutes() -> None:
    plan = Run(steps=10, minutes=1.0)
    assert not finished(plan, 9, 59.0)
    assert finished(plan, 10, 0.0)
    assert finished(plan, 1, 60.0)
    assert not finished(Run(steps=10), 9, 1e9)


def test_seconds_add_up_over_calls_without_each_ones_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(lr_schedule.time, "monotonic", lambda: now[0])
    clock = StageClock(30.0, 104.0, Accelerator(cpu=True))
    seen = []
    for _ in range(4):
        clock.tick()
        seen.append((clock.spent, clock.late))
        now[0] += 2.0
    assert seen == [(30.0, False), (32.0, False), (34.0, True), (36.0, True)]


def test_saving_is_no_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(lr_schedule.time, "monotonic", lambda: now[0])
    clock = StageClock(0.0, 200.0, Accelerator(cpu=True))
    clock.tick()
    now[0] += 2.0
    clock.tick()
    now[0] += 50.0  # a state is written
    clock.restart()
    now[0] += 3.0
    clock.tick()
    assert clock.spent == 5.0
