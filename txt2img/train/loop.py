"""One training run: stages in order, one report a step."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from txt2img.device import for_training
from txt2img.train.checkpoint import load_state, save_state
from txt2img.train.config import Run, TrainConfig
from txt2img.train.ema import RunningMean
from txt2img.train.stages import LatentStage, PictureStage, TextStage

PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}


@dataclass(frozen=True)
class Report:
    """One step done."""

    stage: str
    step: int  # steps done
    steps: int  # steps in all
    loss: float
    lr: float
    images_per_second: float
    sheet: Path | None = None  # samples drawn after this step


class Stage(Protocol):
    """What one stage learns; `learner`'s forward gives the loss of a batch."""

    name: str
    learner: nn.Module
    run: Run
    rates: dict[str, float]  # parts of the learner that learn more slowly → how much

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The learner's arguments at a step."""

    def draw(self, path: Path) -> None:
        """A sheet of samples, by the weights as they are."""

    def export(self) -> None:
        """The stage's part of the model's folder, of the weights as they are."""


def fit(config: TrainConfig) -> Iterator[Report]:
    """Train what the configuration asks for; the model is in `config.out`, a diffusers folder.

    A run stopped at any time goes on from its last saved state, as if it had not been stopped.
    """
    device = for_training(config.device, config.dtype)
    torch.manual_seed(config.seed)
    accelerator = Accelerator(
        mixed_precision=PRECISION[device.dtype], cpu=device.torch_device.type == "cpu"
    )
    for kind in (PictureStage, TextStage, LatentStage):
        if config.what in ("all", kind.name):
            yield from optimise(kind(config, accelerator), config, accelerator)


def learning_rate(run: Run, step: int) -> float:
    """A short rise, then half a cosine from lr to final_lr (Loshchilov and Hutter 2017)."""
    if step < run.warmup:
        return run.lr * (step + 1) / run.warmup
    done = (step - run.warmup) / max(run.steps - run.warmup, 1)
    return run.final_lr + (run.lr - run.final_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def adamw(module: nn.Module, run: Run, rates: dict[str, float]) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) that lets only matrices and kernels decay.

    A group's `rate` is the part of the learning rate that it learns at.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        rate = rates.get(name.partition(".")[0], 1.0)
        groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    table: list[dict[str, object]] = [
        {"params": members, "rate": rate, "weight_decay": run.weight_decay if decays else 0.0}
        for (rate, decays), members in groups.items()
    ]
    return torch.optim.AdamW(table, lr=run.lr, fused=True)


def optimise(stage: Stage, config: TrainConfig, accelerator: Accelerator) -> Iterator[Report]:
    """Train one stage from where it stopped; its learner ends with the running mean."""
    run, state = stage.run, config.out / "state" / f"{stage.name}.safetensors"
    learner = stage.learner.to(accelerator.device)
    optimiser, mean = adamw(learner, run, stage.rates), RunningMean(learner, run.ema)
    first = load_state(state, learner, mean, optimiser) if config.resume else 0
    compiled = torch.compile(learner) if config.compile else learner
    prepared, stepper = accelerator.prepare(compiled, optimiser)
    clock, pictures = time.perf_counter(), 0
    for step in range(first, run.steps):
        rate = learning_rate(run, step)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["rate"]
        loss = prepared(*stage.batch(step))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), run.clip)
        stepper.step()
        stepper.zero_grad()
        mean.update(learner, step)
        pictures += run.batch_size * accelerator.num_processes
        speed = pictures / (time.perf_counter() - clock)
        done, sheet = step + 1, None
        if accelerator.is_main_process and due(done, run.steps, config.save_every):
            save_state(state, done, learner, mean, optimiser)
        if accelerator.is_main_process and due(done, run.steps, config.sample_every):
            sheet = sample(stage, config.out, mean, done)
        yield Report(stage.name, done, run.steps, loss.item(), rate, speed, sheet)
    mean.swap(learner)
    accelerator.wait_for_everyone()
    accelerator.free_memory()


def due(done: int, steps: int, every: int) -> bool:
    """Whether something done `every` so many steps, and after the last, is to be done now."""
    return done % every == 0 or done == steps


def sample(stage: Stage, out: Path, mean: RunningMean, done: int) -> Path:
    """Draw a sheet and write the folder, with the running mean in place of the weights."""
    path = out / "samples" / f"{stage.name}-{done:07d}.png"
    mean.swap(stage.learner)
    try:
        with torch.no_grad():
            stage.draw(path)
            stage.export()
    finally:
        mean.swap(stage.learner)
    return path
