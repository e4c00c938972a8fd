"""What is learnt, in order: pictures ↔ latents, then text and noise → latents."""

import copy
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from txt2img.diffusion.levels import Flow, Process
from txt2img.models.text_encoder import TextEncoder
from txt2img.models.tokenizer import Tokenizer
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.train import checkpoint, train_tokenizer
from txt2img.train.config import TrainConfig
from txt2img.train.data import (
    WORDS_FILE,
    Kept,
    Pictures,
    centred,
    cut_out,
    drop_captions,
    indices,
)
from txt2img.train.latent_cache import all_latents, encode_rows, load_vae, normalise
from txt2img.train.losses import LevelBatch
from txt2img.train.objectives import NoiseLearner, PairLearner, PictureLearner
from txt2img.train.samples import (
    SHEET_PICTURES,
    denoiser,
    drawn,
    levels_of,
    process_of,
    prompts_of_sheet,
    save_sheet,
)
from txt2img.weights import tokenizer_files

GIB = 2**30
LOW_NOISE = -1.3, 0.8  # mean and spread of the logit of time where outlines are made
LEARNABLE = 0.85  # of the times: a noisier picture tells next to nothing but its caption
SHEET_STEPS = 20  # of each picture on a sheet
ALIKE_PICTURES = 64  # of a sheet that shows how captions and pictures agree
SPREAD_PICTURES = 512  # enough to know the latents' mean and spread


class Ids:
    """Captions → the token ids (B, L) of their first chunks; each is tokenized once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        for caption in captions:
            if caption not in self.known:
                self.known[caption] = self.tokenizer.chunks(caption)[0]
        return torch.tensor([self.known[caption] for caption in captions])


def seeded(
    config: TrainConfig, step: int, accelerator: Accelerator
) -> tuple[random.Random, torch.Generator]:
    """Chance for one step of one process, from the seed and the step alone, so that runs resume.

    Noise is drawn on the device that learns: a GPU would wait for a processor's.
    """
    rng = random.Random(f"{config.seed} {step} {accelerator.process_index}")
    return rng, torch.Generator(accelerator.device).manual_seed(rng.getrandbits(32))


def rows_at(accelerator: Accelerator, count: int, size: int, step: int, seed: int) -> list[int]:
    """The rows, `size` of `count`, that this process learns from at a step."""
    start = (step * accelerator.num_processes + accelerator.process_index) * size
    return indices(count, start, size, seed)


class Mixed:
    """A choice of rows with a fixed part of plain pictures in every batch, the rest of others.

    Without such a part, or where the data has but one of both, all rows come equally often.
    """

    def __init__(self, pictures: Pictures, part: float | None) -> None:
        self.count = len(pictures.rows)
        alone = {n for n, row in enumerate(pictures.rows) if row.plain}
        self.pools = sorted(alone), [n for n in range(self.count) if n not in alone]
        self.part = part if all(self.pools) else None

    def __call__(self, accelerator: Accelerator, size: int, step: int, seed: int) -> list[int]:
        """The rows, `size` of them, that this process learns from at a step."""
        if self.part is None:
            return rows_at(accelerator, self.count, size, step, seed)
        first = round(size * self.part)
        picked = []
        for pool, some in zip(self.pools, (first, size - first), strict=True):
            picked += [pool[n] for n in rows_at(accelerator, len(pool), some, step, seed)]
        return picked


def time_to_learn(process: Process, config: TrainConfig, rng: random.Random) -> float:
    """A time: any on a flow, an entry of the table otherwise.

    Its density grows as the power `noisy` of time: what a text decides is decided where there is
    little else to see. With a part of `low_noise` the rest leaves out the noisiest, mostly.
    """
    part: float
    if rng.random() < config.low_noise:
        mean, spread = LOW_NOISE
        part = 1.0 / (1.0 + math.exp(-rng.gauss(mean, spread)))
    elif config.low_noise and rng.random() < 0.95:
        part = LEARNABLE * rng.random()
    else:
        part = rng.random() ** (1.0 / (1.0 + config.noisy))
    if isinstance(process, Flow):
        return part * process.time_factor
    return float(min(int(part * process.steps), process.steps - 1))


class PictureStage:
    """The VAE: cut-outs of the training pictures, there and back."""

    name = "vae"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.vae_run
        self.rates: dict[str, float] = {}
        self.pictures, self.vae = Pictures(config.data), VAE(config.vae)
        self.kept = Kept(self.pictures, config.size, config.keep_gib * GIB)
        if config.resume:
            checkpoint.begin_from(self.vae, config.out / "vae" / checkpoint.NETWORK_FILE)
        self.learner = in_memory_format(PictureLearner(self.vae, config), config)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """pixels and noise for PictureLearner."""
        config, size = self.config, self.run.batch_size
        rng, generator = seeded(config, step, self.accelerator)
        rows = rows_at(self.accelerator, len(self.pictures.rows), size, step, config.seed)
        pixels = torch.stack([cut_out(whole, config.crop, rng) for whole in self.kept(rows)])
        cells = pixels.shape[-1] // config.vae.factor
        shape = (size, config.vae.latent_channels, cells, cells)
        noise = torch.randn(shape, generator=generator, device=self.accelerator.device)
        return centred(pixels.to(self.accelerator.device)), noise

    def draw(self, path: Path) -> None:
        """Pictures, each beside its copy."""
        rows = indices(len(self.pictures.rows), 0, SHEET_PICTURES, self.config.seed + 1)
        pixels = torch.stack([self.pictures.pixels(row, self.config.size) for row in rows])
        copied = self.vae.decode(self.vae.encode(pixels.to(self.accelerator.device))).cpu()
        save_sheet(path, torch.stack([pixels, copied], dim=1).flatten(0, 1))

    def export(self) -> None:
        """The VAE's part of the folder, its latents of mean 0 and variance 1."""
        count = len(self.pictures.rows)
        rows = indices(count, 0, min(SPREAD_PICTURES, count), self.config.seed)
        shipped = copy.deepcopy(self.vae)
        latents = encode_rows(
            shipped, self.pictures, rows, self.config.size, self.accelerator.device
        )
        normalise(shipped, latents)
        checkpoint.save_vae(self.config.out, shipped, self.config.size)


class TextStage:
    """The text encoder, beside a small network that sees: captions near their pictures' latents.

    A text encoder that learns from a U-Net's loss alone may say the same of every caption, and
    then the U-Net stops to listen; this one tells captions apart before (Radford et al. 2021).
    """

    name = "text"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.text_run
        self.rates: dict[str, float] = {}
        self.pictures, vae = Pictures(config.data), load_vae(config)
        self.latents = all_latents(vae, self.pictures, config, accelerator)
        self.text = text_encoder(config, self.pictures, accelerator, taught=config.resume)
        self.pair = PairLearner(self.text, config)
        self.learner = in_memory_format(self.pair, config)
        self.ids = Ids(self.text.tokenizer)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of PairLearner: latents and their captions' ids."""
        config, size = self.config, min(self.run.batch_size, len(self.latents))
        rng, _ = seeded(config, step, self.accelerator)
        rows = rows_at(self.accelerator, len(self.latents), size, step, config.seed)
        ids = self.ids([self.pictures.caption(row, rng) for row in rows])
        # a state does not see what follows it: what comes after the last end is for nothing
        ids = ids[:, : int(self.text.end_positions(ids).max()) + 1]
        return self.latents[rows], ids.to(self.accelerator.device)

    def draw(self, path: Path) -> None:
        """How alike captions are to pictures: a square each, white where they are one."""
        rows = indices(len(self.latents), 0, ALIKE_PICTURES, self.config.seed + 1)
        ids = self.ids([self.pictures.rows[row].captions[0] for row in rows])
        texts, sights = self.pair.unit(self.latents[rows], ids.to(self.accelerator.device))
        alike = (texts @ sights.T).cpu().repeat_interleave(8, 0).repeat_interleave(8, 1)
        save_sheet(path, alike.expand(1, 3, -1, -1))

    def export(self) -> None:
        """The text encoder's part of the folder."""
        checkpoint.save_text(self.config.out, self.text)


class LatentStage:
    """Text encoder and U-Net: every picture's latent is made once and kept."""

    name = "unet"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.unet_run
        self.pictures, self.process = Pictures(config.data), process_of(config)
        self.rows_at = Mixed(self.pictures, config.singles)
        self.vae = load_vae(config).to(accelerator.device)
        self.latents = all_latents(self.vae, self.pictures, config, accelerator)
        taught = config.text_run.steps > 0
        self.text = text_encoder(config, self.pictures, accelerator, config.resume or taught)
        self.unet = UNet(config.unet)
        if config.resume:
            checkpoint.begin_from(self.unet, config.out / "unet" / checkpoint.NETWORK_FILE)
        self.rates = {"text": config.text_rate if taught else 1.0}
        self.learner = in_memory_format(NoiseLearner(self.text, self.unet, config), config)
        self.ids = Ids(self.text.tokenizer)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of NoiseLearner: latents, noise, captions' ids, times and levels."""
        config, size = self.config, self.run.batch_size
        rng, generator = seeded(config, step, self.accelerator)
        rows = self.rows_at(self.accelerator, size, step, config.seed)
        captions = [self.pictures.caption(row, rng) for row in rows]
        captions = drop_captions(captions, config.caption_dropout, rng)
        times = [time_to_learn(self.process, config, rng) for _ in rows]
        levels = LevelBatch.of([self.process.level(time) for time in times])
        told = self.ids(captions), torch.tensor(times), levels.alpha, levels.sigma
        x0 = self.latents[rows]  # waits until a GPU is through with the step before
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        return (x0, noise, *(part.to(self.accelerator.device) for part in told))

    def draw(self, path: Path) -> None:
        """Samples of the configuration's prompts, or of the first captions."""
        config, device = self.config, self.accelerator.device
        prompts = prompts_of_sheet(config, self.pictures)
        generator = torch.Generator().manual_seed(config.seed)
        x = torch.randn(len(prompts), *self.latents.shape[1:], generator=generator).to(device)
        words = self.text.encode(prompts), self.text.encode([""] * len(prompts))
        denoise = denoiser(self.unet, config, *words, config.cfg)
        latents = drawn(denoise, x, levels_of(config, SHEET_STEPS), "ddim")
        save_sheet(path, self.vae.decode(latents).cpu())

    def export(self) -> None:
        """All of the folder but the VAE."""
        cells = self.config.size // self.config.vae.factor
        checkpoint.save_unet(self.config.out, self.unet, cells)
        checkpoint.save_text(self.config.out, self.text)
        checkpoint.save_index(self.config.out, self.config)
        if self.pictures.has(WORDS_FILE):
            (self.config.out / WORDS_FILE).write_text(self.pictures.text(WORDS_FILE), "utf-8")


def text_encoder(
    config: TrainConfig, pictures: Pictures, accelerator: Accelerator, taught: bool
) -> TextEncoder:
    """A text encoder with the vocabulary of the run: the one in its folder if `taught`, or new."""
    with accelerator.main_process_first():
        tokenizer = tokenizer_of(config, pictures)
    text = TextEncoder(replace(config.text, vocab=len(tokenizer.vocab)), tokenizer)
    if taught:
        checkpoint.begin_from(text.model, config.out / "text_encoder" / checkpoint.TEXT_FILE)
    return text


def in_memory_format(learner: nn.Module, config: TrainConfig) -> nn.Module:
    """The module in channels-last order where the configuration asks for it."""
    if config.channels_last:
        learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner


def tokenizer_of(config: TrainConfig, pictures: Pictures) -> Tokenizer:
    """A vocabulary of its own, learnt from the captions; a resumed run keeps what it began with.

    So a run can go on with other data, and weights keep their meaning.
    """
    folder = config.out / "tokenizer"
    if config.resume and (folder / "vocab.json").exists():
        return tokenizer_files.read_tokenizer(folder, config.text.length, config.vocab)
    if pictures.has(WORDS_FILE):  # each word that is taught becomes one token
        table = json.loads(pictures.text(WORDS_FILE))
        texts = [*table["words"], *table["ignored"]]
    else:
        texts = [caption for row in pictures.rows for caption in row.captions]
    words, merges = train_tokenizer.learn(texts, config.vocab)
    tokenizer = Tokenizer(words, merges, config.text.length)
    checkpoint.save_tokenizer(folder, tokenizer)
    return tokenizer
