"""How long a stage learns, and how fast: by its steps or by the clock."""

import pytest
from accelerate import Accelerator

from txt2img.train import lr_schedule
from txt2img.train.config import Run
from txt2img.train.lr_schedule import StageClock, finished, learning_rate


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
    plan = Run(steps=10**6, warmup=0, lr=1.0, final_lr=0.05, flat=0.6, piece_minutes=10.0)
    rates = {minute: learning_rate(plan, 5, 60.0 * minute) for minute in (0, 5.9, 8, 9.999)}
    assert rates[0] == rates[5.9] == 1.0
    assert rates[8] == pytest.approx(0.525)
    assert rates[9.999] == pytest.approx(0.05, abs=1e-3)
    assert learning_rate(plan, 5, 601.0) < 0.2
    assert learning_rate(plan, 5, 613.0) == 1.0


def test_a_call_ends_with_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lr_schedule.time, "monotonic", lambda: now[0])
    clock, late = StageClock(590.0, 1e9, Accelerator(cpu=True), piece_minutes=10.0), []
    for _ in range(4):
        clock.tick()
        late.append(clock.late)
        now[0] += 6.0
    assert late == [False, False, True, False]  # at 590, 596, 602, 608 seconds


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
