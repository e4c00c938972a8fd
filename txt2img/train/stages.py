"""Training stages: VAE, then text encoder, then U-Net; each yields batches and exports weights."""

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
from txt2img.errors import BadFile
from txt2img.models.clip import TextEncoder
from txt2img.models.tokenizer import Tokenizer
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.request.taught_words import from_captions
from txt2img.system.files import parse_object
from txt2img.train import checkpoint, train_tokenizer
from txt2img.train.config import TrainConfig
from txt2img.train.data import (
    WORDS_FILE,
    ImageCache,
    Pictures,
    drop_captions,
    random_crop,
    shuffled_indices,
    to_unit_range,
)
from txt2img.train.latent_cache import all_latents, encode_rows, load_trained_vae, normalise_latents
from txt2img.train.losses import LevelBatch
from txt2img.train.objectives import ContrastiveObjective, DenoisingObjective, VAEObjective
from txt2img.train.samples import (
    SHEET_PICTURES,
    guided_denoiser,
    process_of,
    sample_latents,
    sampling_levels,
    save_sheet,
    sheet_prompts,
)
from txt2img.weights import tokenizer_files

GIB = 2**30
LOW_NOISE = -1.3, 0.8  # mean and standard deviation of the times' logit where outlines are made
SHEET_STEPS = 20  # of each picture on a sheet
SIMILARITY_PICTURES = 64  # in the similarity matrix of captions and pictures
STATISTICS_PICTURES = 512  # enough for the latents' mean and standard deviation


class TokenCache:
    """Token ids (B, L) of captions' first chunks; each caption is tokenized once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        for caption in captions:
            if caption not in self.known:
                self.known[caption] = self.tokenizer.chunks(caption)[0]
        return torch.tensor([self.known[caption] for caption in captions])


def step_rng(
    config: TrainConfig, step: int, accelerator: Accelerator
) -> tuple[random.Random, torch.Generator]:
    """Random generators of one step and process, seeded by seed and step so that runs resume.

    Noise is drawn on the training device: a GPU would wait for the CPU's.
    """
    rng = random.Random(f"{config.seed} {step} {accelerator.process_index}")
    return rng, torch.Generator(accelerator.device).manual_seed(rng.getrandbits(32))


def batch_rows(accelerator: Accelerator, count: int, size: int, step: int, seed: int) -> list[int]:
    """Indices of the rows, `size` of `count`, that this process trains on at a step."""
    start = (step * accelerator.num_processes + accelerator.process_index) * size
    return shuffled_indices(count, start, size, seed)


class BalancedSampler:
    """Batch sampler with a fixed share of plain pictures: one whole object on white.

    Without a share, or if the data has only one of both, all rows are equally likely.
    """

    def __init__(self, pictures: Pictures, part: float | None) -> None:
        self.count = len(pictures.rows)
        alone = {n for n, row in enumerate(pictures.rows) if row.plain}
        self.pools = sorted(alone), [n for n in range(self.count) if n not in alone]
        self.part = part if all(self.pools) else None

    def __call__(self, accelerator: Accelerator, size: int, step: int, seed: int) -> list[int]:
        """Indices of the `size` rows that this process trains on at a step."""
        if self.part is None:
            return batch_rows(accelerator, self.count, size, step, seed)
        first = round(size * self.part)
        picked = []
        for pool, some in zip(self.pools, (first, size - first), strict=True):
            picked += [pool[n] for n in batch_rows(accelerator, len(pool), some, step, seed)]
        return picked


def sample_time(process: Process, config: TrainConfig, rng: random.Random) -> float:
    """Sample a training time: any real on a flow, an entry of the table otherwise.

    Its density grows as the power `time_bias` of time, since captions matter most where little else
    is visible. The `low_noise_share` of times lies where outlines are made.
    """
    part: float
    if rng.random() < config.low_noise_share:
        mean, spread = LOW_NOISE
        part = 1.0 / (1.0 + math.exp(-rng.gauss(mean, spread)))
    else:
        part = rng.random() ** (1.0 / (1.0 + config.time_bias))
    if isinstance(process, Flow):
        return part * process.time_factor
    return float(min(int(part * process.steps), process.steps - 1))


def sample_levels(
    process: Process, config: TrainConfig, rng: random.Random, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a batch's times (B,), and their alpha and sigma (B, 1, 1, 1), on the CPU."""
    times = [sample_time(process, config, rng) for _ in range(count)]
    levels = LevelBatch.of([process.level(time) for time in times])
    return torch.tensor(times), levels.alpha, levels.sigma


class VAEStage:
    """Trains the VAE to reconstruct crops of the training pictures."""

    name = "vae"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.vae_run
        self.rates: dict[str, float] = {}
        self.pictures, self.vae = Pictures(config.data), VAE(config.vae)
        self.images = ImageCache(self.pictures, config.size, config.keep_gib * GIB)
        if config.resume:
            checkpoint.load_weights_from(self.vae, config.out / "vae" / checkpoint.NETWORK_FILE)
        self.learner = in_memory_format(VAEObjective(self.vae, config), config)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Pixels and noise for VAEObjective."""
        config, size = self.config, self.run.batch_size
        rng, generator = step_rng(config, step, self.accelerator)
        rows = batch_rows(self.accelerator, len(self.pictures.rows), size, step, config.seed)
        pixels = torch.stack([random_crop(whole, config.crop, rng) for whole in self.images(rows)])
        cells = pixels.shape[-1] // config.vae.factor
        shape = (size, config.vae.latent_channels, cells, cells)
        noise = torch.randn(shape, generator=generator, device=self.accelerator.device)
        return to_unit_range(pixels.to(self.accelerator.device)), noise

    def draw(self, path: Path) -> None:
        """Draw pictures, each beside its reconstruction."""
        rows = shuffled_indices(len(self.pictures.rows), 0, SHEET_PICTURES, self.config.seed + 1)
        pixels = torch.stack([self.pictures.pixels(row, self.config.size) for row in rows])
        copied = self.vae.decode(self.vae.encode(pixels.to(self.accelerator.device))).cpu()
        save_sheet(path, torch.stack([pixels, copied], dim=1).flatten(0, 1))

    def export(self) -> None:
        """Write vae/, with latents scaled to mean 0 and variance 1."""
        count = len(self.pictures.rows)
        rows = shuffled_indices(count, 0, min(STATISTICS_PICTURES, count), self.config.seed)
        shipped = copy.deepcopy(self.vae)
        latents = encode_rows(
            shipped, self.pictures, rows, self.config.size, self.accelerator.device
        )
        normalise_latents(shipped, latents)
        checkpoint.save_vae(self.config.out, shipped, self.config.size)


class TextStage:
    """Trains the text encoder contrastively with a small image encoder (Radford et al. 2021).

    Trained by the U-Net's loss alone, a text encoder may give all captions the same embedding,
    which the U-Net then learns to ignore.
    """

    name = "text"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.text_run
        self.rates: dict[str, float] = {}
        self.pictures, vae = Pictures(config.data), load_trained_vae(config)
        self.latents = all_latents(vae, self.pictures, config, accelerator)
        self.text = text_encoder(config, self.pictures, accelerator, from_checkpoint=config.resume)
        self.pair = ContrastiveObjective(self.text, config)
        self.learner = in_memory_format(self.pair, config)
        self.ids = TokenCache(self.text.tokenizer)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of ContrastiveObjective: latents and their captions' token ids."""
        config, size = self.config, min(self.run.batch_size, len(self.latents))
        rng, _ = step_rng(config, step, self.accelerator)
        rows = batch_rows(self.accelerator, len(self.latents), size, step, config.seed)
        ids = self.ids([self.pictures.caption(row, rng) for row in rows])
        # attention is causal, so tokens after the last end token change nothing
        ids = ids[:, : int(self.text.end_positions(ids).max()) + 1]
        return self.latents[rows], ids.to(self.accelerator.device)

    def draw(self, path: Path) -> None:
        """Draw the similarity matrix of captions and pictures, white where they match."""
        rows = shuffled_indices(len(self.latents), 0, SIMILARITY_PICTURES, self.config.seed + 1)
        ids = self.ids([self.pictures.rows[row].captions[0] for row in rows])
        texts, images = self.pair.embed(self.latents[rows], ids.to(self.accelerator.device))
        similarity = (texts @ images.T).cpu().repeat_interleave(8, 0).repeat_interleave(8, 1)
        save_sheet(path, similarity.expand(1, 3, -1, -1))

    def export(self) -> None:
        """Write text_encoder/ and tokenizer/."""
        checkpoint.save_text(self.config.out, self.text)


class UNetStage:
    """Trains the U-Net and, more slowly, the text encoder, on cached latents."""

    name = "unet"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.unet_run
        self.pictures, self.process = Pictures(config.data), process_of(config)
        self.sampler = BalancedSampler(self.pictures, config.single_object_share)
        self.vae = load_trained_vae(config).to(accelerator.device)
        self.latents = all_latents(self.vae, self.pictures, config, accelerator)
        pretrained = config.text_run.steps > 0
        self.text = text_encoder(config, self.pictures, accelerator, config.resume or pretrained)
        self.unet = UNet(config.unet)
        if config.resume:
            checkpoint.load_weights_from(self.unet, config.out / "unet" / checkpoint.NETWORK_FILE)
        self.rates = {"text": config.text_rate if pretrained else 1.0}
        self.learner = in_memory_format(DenoisingObjective(self.text, self.unet, config), config)
        self.ids = TokenCache(self.text.tokenizer)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of DenoisingObjective: latents, noise, token ids, times and levels."""
        config, size = self.config, self.run.batch_size
        rng, generator = step_rng(config, step, self.accelerator)
        rows = self.sampler(self.accelerator, size, step, config.seed)
        captions = [self.pictures.caption(row, rng) for row in rows]
        captions = drop_captions(captions, config.caption_dropout, rng)
        inputs = self.ids(captions), *sample_levels(self.process, config, rng, len(rows))
        x0 = self.latents[rows]  # waits until a GPU has finished the step before
        noise = torch.randn(x0.shape, generator=generator, device=x0.device)
        return (x0, noise, *(part.to(self.accelerator.device) for part in inputs))

    def draw(self, path: Path) -> None:
        """Draw samples of the configured prompts, or of the first captions."""
        config, device = self.config, self.accelerator.device
        prompts = sheet_prompts(config, self.pictures)
        generator = torch.Generator().manual_seed(config.seed)
        x = torch.randn(len(prompts), *self.latents.shape[1:], generator=generator).to(device)
        words = self.text.encode(prompts), self.text.encode([""] * len(prompts))
        denoise = guided_denoiser(self.unet, config, *words, config.cfg)
        latents = sample_latents(denoise, x, sampling_levels(config, SHEET_STEPS), "ddim")
        save_sheet(path, self.vae.decode(latents).cpu())

    def export(self) -> None:
        """Write everything but vae/."""
        cells = self.config.size // self.config.vae.factor
        checkpoint.save_unet(self.config.out, self.unet, cells)
        checkpoint.save_text(self.config.out, self.text)
        checkpoint.save_index(self.config.out, self.config)
        if self.pictures.has(WORDS_FILE):
            table = self.pictures.text(WORDS_FILE)
        else:
            captions = [caption for row in self.pictures.rows for caption in row.captions]
            table = json.dumps(from_captions(captions), ensure_ascii=False) + "\n"
        (self.config.out / WORDS_FILE).write_text(table, "utf-8")


def text_encoder(
    config: TrainConfig, pictures: Pictures, accelerator: Accelerator, from_checkpoint: bool
) -> TextEncoder:
    """The run's text encoder: from its folder if `from_checkpoint`, else freshly initialised."""
    with accelerator.main_process_first():
        tokenizer = tokenizer_of(config, pictures)
    text = TextEncoder(replace(config.text, vocab=len(tokenizer.vocab)), tokenizer)
    if from_checkpoint:
        checkpoint.load_weights_from(text.model, config.out / "text_encoder" / checkpoint.TEXT_FILE)
    return text


def in_memory_format(learner: nn.Module, config: TrainConfig) -> nn.Module:
    """Convert a module to channels-last if the configuration asks for it."""
    if config.channels_last:
        learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner


def tokenizer_of(config: TrainConfig, pictures: Pictures) -> Tokenizer:
    """The run's tokenizer, trained on the captions; a resumed run keeps the one it began with.

    So a run can continue on other data while its embeddings keep their meaning.
    """
    folder = config.out / "tokenizer"
    if config.resume and (folder / "vocab.json").exists():
        return tokenizer_files.read_tokenizer(folder, config.text.length, config.vocab)
    if pictures.has(WORDS_FILE):  # every taught word becomes one token
        table = parse_object(pictures.text(WORDS_FILE).encode("utf-8"), WORDS_FILE)
        words, ignored = table.get("words"), table.get("ignored", [])
        if not isinstance(words, dict) or not isinstance(ignored, list):
            raise BadFile(f"training data: {WORDS_FILE} needs a table 'words', a list 'ignored'")
        texts = [*words, *map(str, ignored)]
    else:
        texts = [caption for row in pictures.rows for caption in row.captions]
    words, merges = train_tokenizer.train_bpe(texts, config.vocab)
    tokenizer = Tokenizer(words, merges, config.text.length)
    checkpoint.save_tokenizer(folder, tokenizer)
    return tokenizer
