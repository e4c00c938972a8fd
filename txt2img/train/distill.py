"""Distillation into a few-step LoRA: each step replaces several guided steps of the teacher.

Progressive distillation (Salimans and Ho 2022) of a guided teacher (Meng et al. 2023), in one
round, as the teacher's trajectories are nearly straight. The student samples from pure noise by its
own few steps, so it is trained at the latents that it will meet, its own errors included; at each,
the teacher gives the next one. This needs captions, but no pictures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call

from txt2img.diffusion.conditioning import Cond
from txt2img.diffusion.deepcache import FeatureCache
from txt2img.diffusion.guidance import Denoise
from txt2img.diffusion.levels import Level
from txt2img.diffusion.predictions import PREDICTIONS
from txt2img.models.unet import UNet
from txt2img.train import checkpoint
from txt2img.train.config import TrainConfig
from txt2img.train.data import Pictures
from txt2img.train.latent_cache import load_trained_unet, load_trained_vae
from txt2img.train.losses import LevelBatch, denoising_loss
from txt2img.train.samples import (
    guided_denoiser,
    process_of,
    sample_latents,
    sampling_levels,
    save_sheet,
    sheet_prompts,
)
from txt2img.train.stages import (
    BalancedSampler,
    TokenCache,
    in_memory_format,
    step_rng,
    text_encoder,
)

TEACHER_STEPS = 3  # for each step of the student
SAMPLER = "euler"  # the student's
TEACHER_SAMPLER = "dpm++2m"


@dataclass(frozen=True)
class Adapted:
    """A network with some weights replaced, by the parameters' names."""

    unet: UNet
    weights: dict[str, Tensor]

    def __call__(self, x: Tensor, time: Tensor, cond: Cond, *cache: FeatureCache) -> Tensor:
        """The network's output (B, C, h, w) for x (B, C, h, w) at times (B,)."""
        output: Tensor = functional_call(self.unet, self.weights, (x, time, cond, *cache))
        return output

    def parameters(self) -> Iterator[Tensor]:
        """The network's own parameters."""
        return self.unet.parameters()


class DistillationObjective(nn.Module):
    """The loss of a LoRA on one step; the network itself is frozen."""

    def __init__(self, unet: UNet, rank: int, prediction: str) -> None:
        super().__init__()
        # in a tuple, hidden from `parameters`: it is frozen
        self.whole, self.kind = (unet.requires_grad_(False),), prediction
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, layer in lora_layers(unet).items():
            down, up = new_lora_factors(layer.weight, rank)
            self.down[parameter_key(name)], self.up[parameter_key(name)] = (
                nn.Parameter(down),
                nn.Parameter(up),
            )

    def adapted(self) -> Adapted:
        """The network with the LoRA merged."""
        weights = {}
        for name, layer in lora_layers(self.whole[0]).items():
            down, up = self.down[parameter_key(name)], self.up[parameter_key(name)]
            change = (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
            weights[f"{name}.weight"] = layer.weight + change
        return Adapted(self.whole[0], weights)

    def forward(
        self, x: Tensor, aim: Tensor, time: Tensor, tokens: Tensor, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        """x and target x0 (B, C, h, w), time (B,), tokens (B, L, D), levels → a scalar."""
        output = self.adapted()(x, time, Cond(tokens))
        noise = (x - alpha * aim) / sigma
        kind = PREDICTIONS[self.kind]
        return denoising_loss(output, aim, noise, LevelBatch(alpha, sigma), kind).mean()

    def tensors(self) -> dict[str, Tensor]:
        """The LoRA with diffusers' names: down is A, up is B, alpha is the rank."""
        tensors = {}
        for name in lora_layers(self.whole[0]):
            tensors[f"unet.{name}.lora_A.weight"] = self.down[parameter_key(name)]
            tensors[f"unet.{name}.lora_B.weight"] = self.up[parameter_key(name)]
        return tensors


def lora_layers(unet: UNet) -> dict[str, nn.Linear | nn.Conv2d]:
    """Name → layer, of those that a LoRA can adapt."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def new_lora_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Initialise a layer's LoRA (Hu et al. 2021): down is random, up is zero."""
    rank = min(rank, weight.shape[0], weight[0].numel())
    down = torch.empty(rank, *weight.shape[1:])
    nn.init.kaiming_uniform_(down, a=5**0.5)
    return down, torch.zeros(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))


def parameter_key(name: str) -> str:
    """A layer's name as a key of a ParameterDict."""
    return name.replace(".", "/")


class DistillStage:
    """Trains the few-step LoRA."""

    name = "distill"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.distill_run
        self.rates: dict[str, float] = {}
        self.unet = load_trained_unet(config).to(accelerator.device)
        in_memory_format(self.unet, config)
        self.pictures, self.process = Pictures(config.data), process_of(config)
        self.sampler = BalancedSampler(self.pictures, config.single_object_share)
        text = text_encoder(config, self.pictures, accelerator, from_checkpoint=True)
        self.text, self.ids = text.to(accelerator.device).eval(), TokenCache(text.tokenizer)
        self.student = DistillationObjective(self.unet, config.distill_rank, config.prediction)
        self.learner: nn.Module = self.student
        self.levels = sampling_levels(config, config.distill_steps * TEACHER_STEPS)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of DistillationObjective, with equally many pictures at each step."""
        config, size, device = self.config, self.run.batch_size, self.accelerator.device
        rng, generator = step_rng(config, step, self.accelerator)
        rows = self.sampler(self.accelerator, size, step, config.seed)
        rng.shuffle(rows)  # or the first step would get all single objects, the last all scenes
        captions = [self.pictures.caption(row, rng) for row in rows]
        with torch.no_grad(), self.accelerator.autocast():
            x = torch.randn(self.shape(size), generator=generator, device=device)
            parts = self.trajectory(x, self.tokens(captions), self.tokens([""]))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def shape(self, count: int) -> tuple[int, int, int, int]:
        """The shape of a batch of latents."""
        cells = self.config.size // self.config.vae.factor
        return count, self.config.vae.latent_channels, cells, cells

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Encode captions to tokens (B, L, D)."""
        tokens: Tensor = self.text(self.ids(captions).to(self.accelerator.device)).float()
        return tokens

    def trajectory(self, x: Tensor, tokens: Tensor, empty: Tensor) -> list[tuple[Tensor, ...]]:
        """The objective's arguments for each step; x is pure noise (B, C, h, w).

        The first part of the batch trains the first step, the last part the last.
        """
        count, adapted = self.config.distill_steps, self.student.adapted()
        parts: list[tuple[Tensor, ...]] = []
        for n in range(count):
            path = self.levels[n * TEACHER_STEPS : (n + 1) * TEACHER_STEPS + 1]
            a, b, here = path[0], path[-1], len(x) // (count - n)
            part, words = x[:here], tokens[:here]
            teacher = self.denoiser(self.unet, words, empty, self.config.cfg)
            aim = x0_target(part, sample_latents(teacher, part, path, TEACHER_SAMPLER), a, b)
            numbers = [torch.full((here,), v) for v in (self.process.time(a), a.alpha, a.sigma)]
            time, alpha, sigma = (values.to(x.device) for values in numbers)
            parts.append(
                (part, aim, time, words, alpha[:, None, None, None], sigma[:, None, None, None])
            )
            x, tokens = x[here:], tokens[here:]
            if len(x):
                student = self.denoiser(adapted, tokens, empty, 1.0)
                x = sample_latents(student, x, [a, b], SAMPLER)
        return parts

    def denoiser(
        self, network: UNet | Adapted, tokens: Tensor, empty: Tensor, cfg: float
    ) -> Denoise:
        """A guided denoiser of a network for tokens (B, L, D)."""
        words = Cond(tokens), Cond(empty.expand(len(tokens), -1, -1))
        return guided_denoiser(network, self.config, *words, cfg)

    def draw(self, path: Path) -> None:
        """Draw the sample prompts, each by the teacher and by the student."""
        config, device = self.config, self.accelerator.device
        prompts = sheet_prompts(config, self.pictures)
        tokens, empty = self.tokens(prompts), self.tokens([""])
        generator = torch.Generator().manual_seed(config.seed)
        x = torch.randn(self.shape(len(tokens)), generator=generator).to(device)
        teacher = self.denoiser(self.unet, tokens, empty, config.cfg)
        student = self.denoiser(self.student.adapted(), tokens, empty, 1.0)
        pairs = (
            sample_latents(teacher, x, self.levels, TEACHER_SAMPLER),
            sample_latents(student, x, self.levels[::TEACHER_STEPS], SAMPLER),
        )
        vae = load_trained_vae(config).to(device)
        pixels = [vae.decode(latents).cpu() for latents in pairs]
        save_sheet(path, torch.stack(pixels, dim=1).flatten(0, 1))

    def export(self) -> None:
        """Write the LoRA, with its sampling defaults in the header."""
        few = self.config.distill_steps
        drawn = {"steps": few, "cfg": 1.0, "sampler": SAMPLER}
        metadata = {**drawn, "schedule": checkpoint.schedule_name(self.config)}
        path = self.config.out / "lora" / checkpoint.LORA_FILE
        checkpoint.save_weights(self.student.tensors(), path, metadata)


def x0_target(x: Tensor, there: Tensor, a: Level, b: Level) -> Tensor:
    """The x0 prediction with which Euler's step from x at level a ends `there` at b."""
    keep = b.sigma / a.sigma
    return (there - keep * x) / (b.alpha - keep * a.alpha)
