"""The benchmark's arithmetic: what is told of two runs is what they measured."""

import bench
import bench_process
import pytest


def test_a_row_has_its_unit_ratio_and_difference() -> None:
    row = bench.row(bench.Result("memory", 2**21, 2**22, 0.5, bench.MEBIBYTES))
    assert row == ["memory (MiB)", "2", "4", "2.00", "5.0e-01"]
    assert bench.row(bench.Result("alone", 0.25)) == ["alone (s)", "0.250", "–", "–", "–"]


def test_pictures_are_compared_by_the_value_that_differs_most() -> None:
    assert bench_process.farthest(bytes([0, 10, 255]), bytes([5, 10, 255])) == pytest.approx(
        5 / 255
    )


def test_programs_take_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    ours, theirs = bench.in_turns(
        lambda: calls.append("ours"), lambda: calls.append("theirs"), 2, lambda: next(ticks)
    )
    assert calls == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert ours == theirs == 1


def test_a_programs_own_figures_are_told_by_their_medians() -> None:
    runs = [
        bench_process.Run(dict.fromkeys(bench_process.FIGURES, value), 1.0, b"")
        for value in (1.0, 9.0, 2.0)
    ]
    assert bench_process.medians(runs) == dict.fromkeys(bench_process.FIGURES, 2.0)
