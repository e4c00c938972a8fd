"""Few steps, learnt as a LoRA: each of them does what several of the teacher's guided steps do.

Progressive distillation (Salimans and Ho 2022) of a guided teacher (Meng et al. 2023), in one round
as the teacher's ways are nearly straight. The student walks its own few steps from pure noise, so
it learns at the very places that it will come to, its own mistakes among them; from each the
teacher shows where the next one is. No pictures are needed for that, only captions.
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
from txt2img.train.latent_cache import load_unet, load_vae
from txt2img.train.losses import LevelBatch, noise_loss
from txt2img.train.samples import (
    denoiser,
    drawn,
    levels_of,
    process_of,
    prompts_of_sheet,
    save_sheet,
)
from txt2img.train.stages import Ids, Mixed, in_memory_format, seeded, text_encoder

TEACHING = 3  # steps of the teacher in each of the student's
SAMPLER = "euler"  # the student's
SHOWN_BY = "dpm++2m"  # the teacher's


@dataclass(frozen=True)
class Adapted:
    """A network with other weights for some layers, by the parameters' names."""

    unet: UNet
    weights: dict[str, Tensor]

    def __call__(self, x: Tensor, time: Tensor, cond: Cond, *kept: FeatureCache) -> Tensor:
        """The network's output (B, C, h, w) for x (B, C, h, w) at times (B,)."""
        output: Tensor = functional_call(self.unet, self.weights, (x, time, cond, *kept))
        return output

    def parameters(self) -> Iterator[Tensor]:
        """The network's own weights."""
        return self.unet.parameters()


class FewStepsLearner(nn.Module):
    """The loss of a LoRA on one step; the network under it stays as it is."""

    def __init__(self, unet: UNet, rank: int, prediction: str) -> None:
        super().__init__()
        # as a tuple, hidden from `parameters`: it must not learn
        self.whole, self.kind = (unet.requires_grad_(False),), prediction
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, layer in adaptable(unet).items():
            down, up = factors(layer.weight, rank)
            self.down[key(name)], self.up[key(name)] = nn.Parameter(down), nn.Parameter(up)

    def adapted(self) -> Adapted:
        """The network with the LoRA in it, as its weights are now."""
        weights = {}
        for name, layer in adaptable(self.whole[0]).items():
            down, up = self.down[key(name)], self.up[key(name)]
            change = (up.flatten(1) @ down.flatten(1)).view_as(layer.weight)
            weights[f"{name}.weight"] = layer.weight + change
        return Adapted(self.whole[0], weights)

    def forward(
        self, x: Tensor, aim: Tensor, time: Tensor, tokens: Tensor, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        """x and the x0 to aim at (B, C, h, w), time (B,), tokens (B, L, D), levels → a scalar."""
        output = self.adapted()(x, time, Cond(tokens))
        noise = (x - alpha * aim) / sigma
        kind = PREDICTIONS[self.kind]
        return noise_loss(output, aim, noise, LevelBatch(alpha, sigma), kind).mean()

    def tensors(self) -> dict[str, Tensor]:
        """The LoRA as diffusers names it: down is A, up is B, and alpha the rank."""
        made = {}
        for name in adaptable(self.whole[0]):
            made[f"unet.{name}.lora_A.weight"] = self.down[key(name)]
            made[f"unet.{name}.lora_B.weight"] = self.up[key(name)]
        return made


def adaptable(unet: UNet) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that a LoRA can change, by their names."""
    return {
        name: layer
        for name, layer in unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A layer's LoRA as it begins (Hu et al. 2021): down is chance, up is zero."""
    rank = min(rank, weight.shape[0], weight[0].numel())
    down = torch.empty(rank, *weight.shape[1:])
    nn.init.kaiming_uniform_(down, a=5**0.5)
    return down, torch.zeros(weight.shape[0], rank, *(1 for _ in weight.shape[2:]))


def key(name: str) -> str:
    """A layer's name as a ParameterDict takes it."""
    return name.replace(".", "/")


class FewStepsStage:
    """The LoRA that draws in a few steps what the U-Net draws in many."""

    name = "distil"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.distil_run
        self.rates: dict[str, float] = {}
        self.unet = load_unet(config).to(accelerator.device)
        in_memory_format(self.unet, config)
        self.pictures, self.process = Pictures(config.data), process_of(config)
        self.rows_at = Mixed(self.pictures, config.singles)
        text = text_encoder(config, self.pictures, accelerator, taught=True)
        self.text, self.ids = text.to(accelerator.device).eval(), Ids(text.tokenizer)
        self.student = FewStepsLearner(self.unet, config.distil_rank, config.prediction)
        self.learner: nn.Module = self.student
        self.levels = levels_of(config, config.distil_steps * TEACHING)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of FewStepsLearner, as many pictures before each of the few steps."""
        config, size, device = self.config, self.run.batch_size, self.accelerator.device
        rng, generator = seeded(config, step, self.accelerator)
        rows = self.rows_at(self.accelerator, size, step, config.seed)
        rng.shuffle(rows)  # or the first step would see single things, the last one scenes
        captions = [self.pictures.caption(row, rng) for row in rows]
        with torch.no_grad(), self.accelerator.autocast():
            x = torch.randn(self.shape(size), generator=generator, device=device)
            parts = self.walked(x, self.tokens(captions), self.tokens([""]))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def shape(self, count: int) -> tuple[int, int, int, int]:
        """Of so many latents."""
        cells = self.config.size // self.config.vae.factor
        return count, self.config.vae.latent_channels, cells, cells

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """What the U-Net is told of captions (B, L, D)."""
        tokens: Tensor = self.text(self.ids(captions).to(self.accelerator.device)).float()
        return tokens

    def walked(self, x: Tensor, tokens: Tensor, empty: Tensor) -> list[tuple[Tensor, ...]]:
        """What the learner is given, part by part; x is pure noise (B, C, h, w).

        The first part of the batch stops before the first step, the last before the last.
        """
        count, adapted = self.config.distil_steps, self.student.adapted()
        parts: list[tuple[Tensor, ...]] = []
        for n in range(count):
            path = self.levels[n * TEACHING : (n + 1) * TEACHING + 1]
            a, b, here = path[0], path[-1], len(x) // (count - n)
            part, words = x[:here], tokens[:here]
            teacher = self.sees(self.unet, words, empty, self.config.cfg)
            aim = aimed(part, drawn(teacher, part, path, SHOWN_BY), a, b)
            numbers = [torch.full((here,), v) for v in (self.process.time(a), a.alpha, a.sigma)]
            time, alpha, sigma = (values.to(x.device) for values in numbers)
            parts.append(
                (part, aim, time, words, alpha[:, None, None, None], sigma[:, None, None, None])
            )
            x, tokens = x[here:], tokens[here:]
            if len(x):
                student = self.sees(adapted, tokens, empty, 1.0)
                x = drawn(student, x, [a, b], SAMPLER)
        return parts

    def sees(self, network: UNet | Adapted, tokens: Tensor, empty: Tensor, cfg: float) -> Denoise:
        """What a network sees in pictures with these words (B, L, D)."""
        words = Cond(tokens), Cond(empty.expand(len(tokens), -1, -1))
        return denoiser(network, self.config, *words, cfg)

    def draw(self, path: Path) -> None:
        """The configuration's prompts, or the first captions: each as taught and in few steps."""
        config, device = self.config, self.accelerator.device
        prompts = prompts_of_sheet(config, self.pictures)
        tokens, empty = self.tokens(prompts), self.tokens([""])
        generator = torch.Generator().manual_seed(config.seed)
        x = torch.randn(self.shape(len(tokens)), generator=generator).to(device)
        teacher = self.sees(self.unet, tokens, empty, config.cfg)
        student = self.sees(self.student.adapted(), tokens, empty, 1.0)
        pairs = (
            drawn(teacher, x, self.levels, SHOWN_BY),
            drawn(student, x, self.levels[::TEACHING], SAMPLER),
        )
        vae = load_vae(config).to(device)
        pixels = [vae.decode(latents).cpu() for latents in pairs]
        save_sheet(path, torch.stack(pixels, dim=1).flatten(0, 1))

    def export(self) -> None:
        """The LoRA, and in it how it is to be drawn with."""
        few = self.config.distil_steps
        drawn = {"steps": few, "cfg": 1.0, "sampler": SAMPLER}
        said = {**drawn, "schedule": checkpoint.schedule_of(self.config)}
        path = self.config.out / "lora" / checkpoint.LORA_FILE
        checkpoint.save_weights(self.student.tensors(), path, said)


def aimed(x: Tensor, there: Tensor, a: Level, b: Level) -> Tensor:
    """The x0 that a step of Euler's from x at level a has to aim at to come `there` at b."""
    keep = b.sigma / a.sigma
    return (there - keep * x) / (b.alpha - keep * a.alpha)
