"""A LoRA of few steps: where it learns, what it aims at, and what comes out."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.conftest import Command
from tests.train.test_loop import run, tiny, weights
from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.levels import Diffusion, Flow, Process, betas, zero_terminal_snr
from txt2img.diffusion.samplers import SAMPLERS
from txt2img.diffusion.schedules import trailing
from txt2img.errors import BadFile, BadRequest
from txt2img.images import image_file
from txt2img.models.unet import UNet
from txt2img.request import Request, Sampler
from txt2img.request.adapters import Lora
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import choose
from txt2img.train.config import Run, TrainConfig
from txt2img.train.distill import (
    TEACHER_STEPS,
    DistillationObjective,
    DistillStage,
    lora_layers,
    x0_target,
)
from txt2img.train.stages import step_rng
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.load import load

PURE = Diffusion(zero_terminal_snr(betas("scaled_linear", 1000, 0.00085, 0.012)))
FEW = Run(steps=12, batch_size=8, lr=4e-3, warmup=1, ema=0.5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A model of a few steps' training, to be copied: its LoRA is what comes next."""
    config = tiny(tmp_path_factory.mktemp("trained"), sample_prompts=("a", "b"))
    run(config)
    return replace(config, stage="distill", distill_run=FEW, distill_steps=2, distill_rank=4)


def copied(trained: TrainConfig, folder: Path) -> TrainConfig:
    """The same model in a folder of its own."""
    shutil.copytree(trained.out, folder / "model")
    return replace(trained, out=folder / "model")


@pytest.mark.parametrize("process", [PURE, Flow()], ids=["zero snr", "flow"])
def test_a_step_to_what_is_aimed_at_comes_there(process: Process) -> None:
    levels = trailing(process, 4)
    x, there = torch.randn(2, 1, 3, 5, 5, dtype=torch.float64).unbind()
    for a, b in pairwise(levels):
        aim = x0_target(x, there, a, b)
        [state] = SAMPLERS["euler"](lambda _, level, aim=aim: aim, x, [a, b], lambda *_: x)
        assert torch.allclose(state.x, there, atol=1e-9)


def test_it_begins_as_the_network_and_only_the_lora_learns(trained: TrainConfig) -> None:
    torch.manual_seed(0)
    unet = UNet(trained.unet)
    learner = DistillationObjective(unet, 4, "v")
    x, tokens, time = torch.randn(3, 4, 8, 8), torch.randn(3, 16, 32), torch.tensor([9.0, 5.0, 1.0])
    adapted = learner.adapted()
    with torch.no_grad():
        assert torch.equal(adapted(x, time, Cond(tokens)), unet(x, time, Cond(tokens)))
    ones = torch.ones(3, 1, 1, 1)
    learner(x, torch.randn_like(x), time, tokens, 0.6 * ones, 0.8 * ones).backward()
    names = {name.partition(".")[0] for name, _ in learner.named_parameters()}
    assert names == {"up", "down"}
    assert all(p.grad is not None for p in learner.parameters())
    assert all(p.grad is None for p in unet.parameters())


def test_the_batch_is_spread_over_the_steps_of_the_student(trained: TrainConfig) -> None:
    few = replace(trained, distill_steps=3, distill_run=replace(FEW, batch_size=8))
    stage = DistillStage(few, Accelerator(cpu=True))
    x, aim, time, tokens, alpha, sigma = stage.batch(0)
    expected = [stage.process.time(level) for level in stage.levels[:-1:TEACHER_STEPS]]
    assert time.tolist() == [expected[0]] * 2 + [expected[1]] * 3 + [expected[2]] * 3
    assert x.shape == aim.shape == (8, 4, 8, 8) and tokens.shape[0] == 8
    assert alpha[:2].eq(0).all() and sigma[:2].eq(1).all()  # the first step begins at pure noise
    assert (alpha.square() + sigma.square()).allclose(torch.ones(8, 1, 1, 1))
    again = stage.batch(0)
    assert all(
        torch.equal(a, b) for a, b in zip(again, (x, aim, time, tokens, alpha, sigma), strict=True)
    )
    assert not torch.equal(stage.batch(1)[0], x)


def test_the_student_learns_where_its_own_steps_lead(trained: TrainConfig) -> None:
    accelerator = Accelerator(cpu=True)
    stage = DistillStage(trained, accelerator)
    for up in stage.student.up.values():
        nn.init.normal_(up, std=0.02)
    x, _, _, tokens, *_ = stage.batch(0)
    _, generator = step_rng(trained, 0, accelerator)
    noise = torch.randn(x.shape, generator=generator)
    assert torch.equal(x[:4], noise[:4])
    sees = stage.denoiser(stage.student.adapted(), tokens[4:], tokens[:1], 1.0)
    ends = stage.levels[::TEACHER_STEPS][:2]
    with torch.no_grad():
        [state] = SAMPLERS["euler"](sees, noise[4:], ends, lambda *_: noise)
    assert torch.allclose(x[4:], state.x, atol=1e-5)


def test_where_the_teacher_ends_is_where_the_last_step_aims(trained: TrainConfig) -> None:
    """A teacher that always sees the same picture is obeyed from everywhere."""
    stage = DistillStage(trained, Accelerator(cpu=True))
    seen = torch.randn(1, 4, 8, 8)
    stage.denoiser = lambda *_: lambda x, _level: seen.expand_as(x)  # type: ignore[method-assign]
    _, aim, *_ = stage.batch(3)
    assert torch.allclose(aim, seen.expand_as(aim), atol=1e-4)


def test_it_comes_nearer_to_its_teacher(trained: TrainConfig, tmp_path: Path) -> None:
    config = copied(trained, tmp_path)
    before = weights(config.out)
    reports = run(replace(config, distill_run=replace(FEW, steps=40)))
    losses = [report.loss for report in reports]
    assert {report.stage for report in reports} == {"distill"}
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    now = weights(config.out)
    assert all(torch.equal(now[name], value) for name, value in before.items())
    assert {name.partition("/")[0] for name in now.keys() - before.keys()} == {"lora", "state"}
    assert reports[-1].sheet is not None and reports[-1].sheet.exists()


def test_a_stopped_run_goes_on_as_if_it_had_not_been(trained: TrainConfig, tmp_path: Path) -> None:
    whole, parts = (copied(trained, tmp_path / name) for name in ("whole", "parts"))
    run(whole)
    run(parts, 4)
    run(parts)
    one, other = (weights(config.out) for config in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_lora_of_another_form_begins_anew(trained: TrainConfig, tmp_path: Path) -> None:
    config = replace(copied(trained, tmp_path), distill_run=replace(FEW, steps=2))
    run(config)
    assert run(config) == []
    for other in replace(config, distill_rank=2), replace(config, distill_steps=3):
        assert [report.step for report in run(other)] == [1, 2]


def test_the_file_is_a_lora_that_says_how_it_is_drawn_with(
    trained: TrainConfig, tmp_path: Path
) -> None:
    config = copied(trained, tmp_path)
    stage = DistillStage(config, Accelerator(cpu=True))
    for up in stage.student.up.values():
        nn.init.normal_(up, std=0.02)
    stage.export()
    path = config.out / "lora" / "few-steps.safetensors"
    model = load(str(config.out), choose("cpu", "float32"))
    model.adapters.paths = AdapterPaths({"few-steps": path})
    request = resolve_adapters(model, Request("a", loras=(Lora("few-steps"),))).filled(
        model.family.defaults
    )
    assert (request.steps, request.cfg, request.sampler) == (2, 1.0, Sampler.EULER)
    layers = len(lora_layers(stage.unet))
    assert model.adapters.notes == [f"LoRA few-steps: applied {layers} of {layers}"]
    apply_adapters(model, request)
    worn = dict(model.network.named_parameters())
    for name, weight in stage.student.adapted().weights.items():
        assert torch.allclose(weight, worn[name], atol=2e-4), name


def test_the_program_draws_with_it(trained: TrainConfig, tmp_path: Path, command: Command) -> None:
    config = copied(trained, tmp_path)
    run(config)
    lora = str(config.out / "lora" / "few-steps.safetensors")
    out = tmp_path / "x.png"
    done = command("a", "-m", str(config.out), "--lora", lora, "--seed", "1", "-o", str(out))
    assert done.code == 0, done.err
    found = image_file.read(out).request
    assert found is not None
    assert (found.steps, found.cfg, found.sampler) == (2, 1.0, Sampler.EULER)


def test_without_a_unet_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="--stage unet"):
        run(tiny(tmp_path, stage="distill", distill_run=FEW))


@pytest.mark.parametrize(
    "options", [{"distill_steps": 0}, {"distill_steps": 99}, {"distill_rank": 0}]
)
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=next(iter(options))):
        replace(TrainConfig(), **options)
