"""One training run: stages in order, one report a step."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from txt2img.models.optimize.cuda_graph import first_line
from txt2img.system.device.device import for_training
from txt2img.system.device.memory import is_oom
from txt2img.train import checkpoint
from txt2img.train.checkpoint import load_state, progress, save_state
from txt2img.train.config import STAGES, Run, TrainConfig
from txt2img.train.distill import FewStepsStage
from txt2img.train.ema import RunningMean
from txt2img.train.finetune_decoder import DecoderStage
from txt2img.train.lr_schedule import MINUTE, Pace, finished, learning_rate
from txt2img.train.optimizers import optimizers_of, set_rate
from txt2img.train.stages import LatentStage, PictureStage, TextStage
from txt2img.weights.registry.hashes import sha256

LEAST_LEFT = 2.5 * MINUTE  # of a call, for a stage to begin in: what comes before its first step
ALIKE = 0.2  # of a gradient: as far as rounding to bf16 in another order may move it, and more
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
    plain: str = ""  # why it runs uncompiled against the configuration's wish


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
    begun = time.monotonic()
    deadline = begun + MINUTE * config.stop_after if config.stop_after else math.inf
    learnt = False  # whether this call has done anything yet
    device = for_training(config.device, config.dtype)
    torch.backends.cudnn.benchmark = True  # shapes stay: the quickest kernels are worth a search
    accelerator = Accelerator(
        mixed_precision=PRECISION[device.dtype], cpu=device.torch_device.type == "cpu"
    )
    for kind in (PictureStage, TextStage, LatentStage, DecoderStage, FewStepsStage):
        if config.what in ("all", kind.name) and getattr(config, f"{kind.name}_run").steps:
            if learnt and config.compile and deadline - time.monotonic() < LEAST_LEFT:
                return
            learnt = learnt or not is_done(config, kind.name)
            torch.manual_seed(config.seed)  # a stage begins alike, whatever was done before it
            stage: Stage = kind(config, accelerator)
            if not (yield from optimise(stage, config, accelerator, deadline)):
                return


def state_of(config: TrainConfig, name: str) -> Path:
    """The file that a stage goes on from."""
    return config.out / "state" / f"{name}.safetensors"


def source_of(config: TrainConfig, name: str) -> str:
    """Digests of the networks that a stage learns from; empty for those that learn from data.

    Such a stage begins anew when these have changed, or the form of what it learns.
    """
    if name not in (DecoderStage.name, FewStepsStage.name):
        return ""
    files = ("unet", checkpoint.NETWORK_FILE), ("text_encoder", checkpoint.TEXT_FILE)
    paths = [config.out / folder / file for folder, file in files]
    said = [sha256(path) for path in paths if path.exists()]
    if name == FewStepsStage.name:
        said.append(f"{config.distil_steps} steps, rank {config.distil_rank}")
    return " ".join(said)


def is_done(config: TrainConfig, name: str) -> bool:
    """Whether a stage has nothing to learn: it has no steps, or its state has done them all."""
    run: Run = getattr(config, f"{name}_run")
    step, spent = progress(state_of(config, name), source_of(config, name))
    return finished(run, step, spent)


def is_whole(config: TrainConfig) -> bool:
    """Whether all that the configuration asks for is done; not so after a call's `stop_after`."""
    return all(is_done(config, name) for name in STAGES if config.what in ("all", name))


def optimise(
    stage: Stage, config: TrainConfig, accelerator: Accelerator, deadline: float
) -> Generator[Report, None, bool]:
    """Train one stage on, to its running mean; gives whether it may go on to the next stage."""
    run, state, source = stage.run, state_of(config, stage.name), source_of(config, stage.name)
    learner = stage.learner.to(accelerator.device)
    optimizers, mean = optimizers_of(learner, run, stage.rates), RunningMean(learner, run.ema)
    first, spent = load_state(state, learner, mean, optimizers, source) if config.resume else (0, 0)
    if finished(run, first, spent):
        return True
    batch = stage.batch(first)
    wished = config.compile and stage.name == LatentStage.name  # others end before it pays
    quick, plain = compiled(learner, batch, wished, accelerator)
    prepared, *steppers = accelerator.prepare(quick, *optimizers)
    pace, clock = Pace(spent, deadline, accelerator, run.piece_minutes), time.perf_counter()
    for step in range(first, run.steps):
        rate = set_rate(optimizers, learning_rate(run, step, pace.spent))
        loss = loss_of(prepared, batch, accelerator.device)
        descend(loss, prepared, steppers, run.clip, accelerator)
        mean.update(learner, step)
        done, sheet = step + 1, None
        if done < run.steps:
            batch = stage.batch(done)  # while a GPU is still busy with this one
        value = loss.item()
        pace.tick()
        ends = finished(run, done, pace.spent) or pace.late
        if accelerator.is_main_process and (ends or done % config.save_every == 0):
            save_state(state, done, pace.spent, learner, mean, optimizers, source)
        if accelerator.is_main_process and (ends or done % config.sample_every == 0):
            sheet = sample(stage, config.out, mean, done)
        pace.go_on()
        pictures = (done - first) * run.batch_size * accelerator.num_processes
        speed = pictures / (time.perf_counter() - clock)
        yield Report(stage.name, done, run.steps, value, rate, speed, sheet, plain)
        if ends:
            break
    mean.swap(learner)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return not pace.late


def loss_of(learner: nn.Module, batch: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """A batch's loss, with attention as plain matrix products on a processor.

    Its flash kernel saves memory that so short sequences do not need, and takes a quarter of a
    step to go back through: without it a step takes 0.7 times as long.
    """
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with plain:
        return cast(Tensor, learner(*batch))


def descend(
    loss: Tensor,
    learner: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    clip: float,
    accelerator: Accelerator,
) -> None:
    """One step of the optimisers down the loss's gradient, which is no longer than `clip`."""
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(learner.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()


def compiled(
    learner: nn.Module, batch: tuple[Tensor, ...], wished: bool, accelerator: Accelerator
) -> tuple[nn.Module, str]:
    """The learner, compiled if that is wished and does not change its gradient of a batch.

    And why it stays as it is, against that wish. OutOfMemoryError.

    A compiler can be wrong without failing: torch 2.13's for processors makes zeros of most of a
    U-Net's gradient in bf16, of which the loss tells nothing for an hour.
    """
    if not wished:
        return learner, ""
    # a part that this machine cannot compile runs as it is
    torch._dynamo.config.suppress_errors = True
    quick = cast(nn.Module, torch.compile(learner))
    with accelerator.autocast():
        true = gradient(learner, batch, accelerator.device)
        try:
            other = gradient(quick, batch, accelerator.device)
        except Exception as error:  # of the way back no error is suppressed, of any kind
            if is_oom(error):
                raise
            learner.zero_grad()
            return learner, first_line(error)
    alike = bool((other - true).norm() <= ALIKE * true.norm())
    return (quick, "") if alike else (learner, "its gradient is not the true one")


def gradient(learner: nn.Module, batch: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """The gradient of a batch's loss, in one row; none is left behind."""
    loss_of(learner, batch, device).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()]
    learner.zero_grad()
    return torch.cat([grad.flatten() for grad in grads])


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
