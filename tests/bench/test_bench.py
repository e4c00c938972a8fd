"""The benchmark's arithmetic: what is told of two runs is what they measured."""

from pathlib import Path

import pytest
import torch

from tests.bench import bench
from tests.bench import control as bench_control
from tests.bench import memory as bench_memory
from tests.bench import process as bench_process
from tests.bench import transformer as bench_transformer


def test_a_row_has_its_unit_ratio_and_difference() -> None:
    row = bench.row(bench.Result("memory", 2**21, 2**22, 0.5, bench.MEBIBYTES))
    assert row == ["memory (MiB)", "2", "4", "2.00", "5.0e-01"]
    assert bench.row(bench.Result("alone", 0.25)) == ["alone (s)", "0.250", "–", "–", "–"]


def test_pictures_are_compared_by_the_value_that_differs_most() -> None:
    assert bench_process.farthest(bytes([0, 10, 255]), bytes([5, 10, 255])) == pytest.approx(
        5 / 255
    )


@torch.inference_mode()
def test_a_transformers_two_steps_are_of_the_same_network() -> None:
    ours, theirs = bench_transformer.step(heads=1, layers=1, pixels=64)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_controlnets_two_steps_are_of_the_same_networks() -> None:
    ours, theirs = bench_control.step((32, 32, 64, 64), 64, 7.5, bench.same_weights)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)


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


def test_what_is_weighed_beside_diffusers_is_a_folder_that_it_reads(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    bench_memory.write_folder(tmp_path)
    read = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    assert read("a cat")["input_ids"] == [49406, 320, 2368, 49407]
    assert {path.name for path in tmp_path.iterdir()} == {
        *("unet", "vae", "text_encoder", "scheduler", "tokenizer", "model_index.json")
    }


@pytest.mark.parametrize("part", bench_memory.PARTS)
def test_each_of_a_parts_runs_has_its_name_and_a_program(part: str, tmp_path: Path) -> None:
    runs = list(bench_memory.runs(part, tmp_path / "x.safetensors", tmp_path, 2))
    assert len({name for name, _, _ in runs}) == len(runs)
    for _, _, command in runs:
        compile(command[0], part, "exec")
