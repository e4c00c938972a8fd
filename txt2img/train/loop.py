"""Training loop: stages in order, one report per step."""

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
from txt2img.train.alpha import AlphaStage
from txt2img.train.checkpoint import load_state, read_progress, save_state
from txt2img.train.config import ADAPTERS, Run, TrainConfig
from txt2img.train.control import ControlStage
from txt2img.train.distill import DistillStage
from txt2img.train.ema import EMA
from txt2img.train.finetune_decoder import DecoderStage
from txt2img.train.lora import LoraStage
from txt2img.train.lr_schedule import MINUTE, StageClock, ends_piece, finished, learning_rate
from txt2img.train.optimizers import optimizers_of, set_rate
from txt2img.train.stages import TextStage, UNetStage, VAEStage
from txt2img.train.textual_inversion import InversionStage
from txt2img.weights.registry.hashes import sha256

MIN_MINUTES_LEFT = 2.5 * MINUTE  # of a call, to start a stage that first compiles
GRADIENT_TOLERANCE = 0.2  # relative: more than rounding to bf16 in another order explains
KINDS = (
    *(VAEStage, TextStage, UNetStage, DecoderStage, AlphaStage, DistillStage),
    *(LoraStage, InversionStage, ControlStage),
)
PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}


@dataclass(frozen=True)
class Report:
    """Progress after one step."""

    stage: str
    step: int  # steps done
    steps: int  # steps in all
    loss: float
    lr: float
    images_per_second: float
    sheet: Path | None = None  # samples drawn after this step
    plain: str = ""  # why it runs uncompiled although `compile` is set


class Stage(Protocol):
    """One stage of training; `learner`'s forward returns the loss of a batch."""

    name: str
    learner: nn.Module
    run: Run
    rates: dict[str, float]  # learner's submodule → its share of the learning rate

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The learner's arguments at a step."""

    def draw(self, path: Path) -> None:
        """Write a sheet of samples by the current weights."""

    def export(self) -> None:
        """Write the stage's part of the model's folder by the current weights."""


def fit(config: TrainConfig) -> Iterator[Report]:
    """Train the configured stages; the model is written to `config.out`, a diffusers folder.

    A stopped run resumes from its last saved state exactly as if it had not been stopped.
    """
    begun = time.monotonic()
    deadline = begun + MINUTE * config.stop_after if config.stop_after else math.inf
    trained = False  # whether this call has trained a stage yet
    device = for_training(config.device, config.dtype)
    torch.backends.cudnn.benchmark = True  # shapes never change, so searching for fast kernels pays
    accelerator = Accelerator(
        mixed_precision=PRECISION[device.dtype], cpu=device.torch_device.type == "cpu"
    )
    for kind in KINDS:
        if kind.name in config.stages and getattr(config, f"{kind.name}_run").steps:
            if trained and config.compile and deadline - time.monotonic() < MIN_MINUTES_LEFT:
                return
            trained = trained or not is_done(config, kind.name)
            torch.manual_seed(config.seed)  # initial weights must not depend on earlier stages
            stage: Stage = kind(config, accelerator)
            if not (yield from train_stage(stage, config, accelerator, deadline)):
                return


def state_path(config: TrainConfig, name: str) -> Path:
    """The file that a stage resumes from."""
    return config.out / "state" / f"{name}.safetensors"


def source_digests(config: TrainConfig, name: str) -> str:
    """Digests of the networks that a stage is trained from; empty for those trained on data only.

    Such a stage starts over when these have changed, or its own settings have.
    """
    if name in ADAPTERS:
        own = {"lora": config.lora_rank, "embedding": config.vectors, "control": config.control}
        return " ".join(map(str, (config.base, config.size, own[name])))
    if name not in (DecoderStage.name, AlphaStage.name, DistillStage.name):
        return ""
    files = [("unet", checkpoint.NETWORK_FILE), ("text_encoder", checkpoint.TEXT_FILE)]
    if name == AlphaStage.name:
        files.append(("vae", checkpoint.NETWORK_FILE))
    paths = [config.out / folder / file for folder, file in files]
    digests = [sha256(path) for path in paths if path.exists()]
    if name == DistillStage.name:
        digests.append(f"{config.distill_steps} steps, rank {config.distill_rank}")
    return " ".join(digests)


def is_done(config: TrainConfig, name: str) -> bool:
    """Whether a stage is finished: it has no steps, or its state has done them all."""
    run: Run = getattr(config, f"{name}_run")
    step, spent = read_progress(state_path(config, name), source_digests(config, name))
    return finished(run, step, spent)


def is_whole(config: TrainConfig) -> bool:
    """Whether all configured stages are finished; False after a call's `stop_after`."""
    return all(is_done(config, name) for name in config.stages)


def train_stage(
    stage: Stage, config: TrainConfig, accelerator: Accelerator, deadline: float
) -> Generator[Report, None, bool]:
    """Train one stage; its learner ends as the EMA. Returns whether the next stage may start."""
    run, learner = stage.run, stage.learner.to(accelerator.device)
    state, source = state_path(config, stage.name), source_digests(config, stage.name)
    optimizers, mean = optimizers_of(learner, run, stage.rates), EMA(learner, run.ema)
    first, spent = load_state(state, learner, mean, optimizers, source) if config.resume else (0, 0)
    if finished(run, first, spent):
        return True
    batch = stage.batch(first)
    compiled, uncompiled = compile_checked(stage, config, batch, accelerator)
    prepared, *steppers = accelerator.prepare(compiled, *optimizers)
    timer, clock = StageClock(spent, deadline, accelerator), time.perf_counter()
    for step in range(first, run.steps):
        rate = set_rate(optimizers, learning_rate(run, step, timer.spent))
        loss = loss_of(prepared, batch, accelerator.device)
        optimizer_step(loss, prepared, steppers, run.clip, accelerator)
        mean.update(learner, step)
        done, sheet = step + 1, None
        if done < run.steps:
            batch = stage.batch(done)  # prepared while a GPU still computes this one
        value = loss.item()
        timer.tick()
        ends = finished(run, done, timer.spent) or timer.late or ends_piece(run, done)
        if accelerator.is_main_process and (ends or done % config.save_every == 0):
            save_state(state, done, timer.spent, learner, mean, optimizers, source)
        if accelerator.is_main_process and (ends or done % config.sample_every == 0):
            sheet = sample_and_export(stage, config.out, mean, done)
        timer.restart()
        pictures = (done - first) * run.batch_size * accelerator.num_processes
        speed = pictures / (time.perf_counter() - clock)
        yield Report(stage.name, done, run.steps, value, rate, speed, sheet, uncompiled)
        if ends:
            break
    mean.swap(learner)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return finished(run, done, timer.spent) and not timer.late


def loss_of(learner: nn.Module, batch: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """The loss of a batch; on a CPU with attention as plain matrix products.

    Its flash kernel saves memory that short sequences do not need, and its backward pass takes a
    quarter of a step: without it a step takes 0.7 times as long.
    """
    attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
    with attention:
        return cast(Tensor, learner(*batch))


def optimizer_step(
    loss: Tensor,
    learner: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    clip: float,
    accelerator: Accelerator,
) -> None:
    """Backpropagate, clip the gradient's norm and step the optimizers."""
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(learner.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad()


def compile_checked(
    stage: Stage, config: TrainConfig, batch: tuple[Tensor, ...], accelerator: Accelerator
) -> tuple[nn.Module, str]:
    """Compile a U-Net's learner if configured and its gradient stays right; else return why not.

    Raises OutOfMemoryError. A compiler can be wrong without failing: torch 2.13 on CPUs zeroes most
    of a U-Net's gradient in bf16, which the loss does not show for an hour.
    """
    learner = stage.learner
    if not config.compile or stage.name != UNetStage.name:  # the others are too short to pay
        return learner, ""
    compiled = cast(nn.Module, torch.compile(learner))
    with accelerator.autocast():
        true = flat_gradient(learner, batch, accelerator.device)
        try:
            other = flat_gradient(compiled, batch, accelerator.device)
        except Exception as error:  # of whatever kind the compiler raises
            if is_oom(error):
                raise
            learner.zero_grad()
            return learner, first_line(error)
    right = bool((other - true).norm() <= GRADIENT_TOLERANCE * true.norm())
    return (compiled, "") if right else (learner, "its gradient is not the true one")


def flat_gradient(learner: nn.Module, batch: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """The gradient of a batch's loss as one vector; the parameters' own is cleared."""
    loss_of(learner, batch, device).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()]
    learner.zero_grad()
    return torch.cat([grad.flatten() for grad in grads])


def sample_and_export(stage: Stage, out: Path, mean: EMA, done: int) -> Path:
    """Draw a sheet and export the model, both by the EMA of the weights."""
    path = out / "samples" / f"{stage.name}-{done:07d}.png"
    mean.swap(stage.learner)
    try:
        with torch.no_grad():
            stage.draw(path)
            stage.export()
    finally:
        mean.swap(stage.learner)
    return path
