"""Fine-tune the VAE's decoder to clean up what the U-Net leaves uneven.

A decoder trained on encoded pictures alone shows every flaw of a sampled latent as a stain. Here
pictures are partly noised and resampled with guidance, as users' pictures are sampled, and the
decoder learns to restore the originals. The encoder and so the latents stay fixed: the U-Net loses
nothing, and drawing costs the same.
"""

import copy
import random
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from txt2img.models.clip import TextEncoder
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.train import checkpoint
from txt2img.train.config import TrainConfig
from txt2img.train.data import ImageCache, Pictures, shuffled_indices, to_unit_range
from txt2img.train.latent_cache import (
    BATCH,
    cached,
    digest,
    encode_rows,
    load_trained_unet,
    load_trained_vae,
)
from txt2img.train.losses import LevelBatch, add_noise
from txt2img.train.objectives import DecoderObjective
from txt2img.train.samples import (
    SHEET_PICTURES,
    guided_denoiser,
    sample_latents,
    sampling_levels,
    save_sheet,
)
from txt2img.train.stages import GIB, batch_rows, in_memory_format, step_rng, text_encoder

STEPS = 12  # from pure noise to a picture
START_STEPS = (5, 7, 9)  # that resampling starts at: any earlier, and the picture would change
FINETUNED_SHARE = 0.3  # in the interpolation: with more, copies lose edges for little gain
BORDER_SHARE = 0.25  # of a crop's sides lie on the picture's border, where padding is seen
TRUE_SHARE = 0.25  # of the batch are latents of true pictures, which must not get worse


class DecoderStage:
    """Trains the decoder to restore true pictures from resampled latents."""

    name = "decoder"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.decoder_run
        self.rates: dict[str, float] = {}
        self.pictures, self.vae = Pictures(config.data), load_trained_vae(config)
        self.before = before_finetuning(self.vae, config, accelerator)
        self.painted = ImageCache(self.pictures, config.size, config.keep_gib * GIB)
        self.rows = rows_to_noise(self.pictures, config.noised_samples, config.seed)
        both = resampled_latents(self.vae, self.pictures, self.rows, config, accelerator)
        self.latents, self.resampled = both
        self.learner = in_memory_format(DecoderObjective(self.vae, config), config)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of DecoderObjective: crops of latents and of their pictures."""
        config, size = self.config, self.run.batch_size
        rng, _ = step_rng(config, step, self.accelerator)
        picked = batch_rows(self.accelerator, len(self.rows), size, step, config.seed)
        painted = self.painted([self.rows[n] for n in picked])
        factor, latents, pixels = config.vae.factor, [], []
        side = min(config.crop // factor, self.latents.shape[-1])
        for n, whole in zip(picked, painted, strict=True):
            source = self.latents if rng.random() < TRUE_SHARE else self.resampled
            top, left = (crop_start(self.latents.shape[-1] - side, rng) for _ in range(2))
            latents.append(source[n, :, top : top + side, left : left + side])
            top, left, span = top * factor, left * factor, side * factor
            pixels.append(whole[:, top : top + span, left : left + span])
        return torch.stack(latents), to_unit_range(torch.stack(pixels).to(self.accelerator.device))

    def draw(self, path: Path) -> None:
        """Draw decoded resampled latents, each beside its true picture."""
        count = min(SHEET_PICTURES, len(self.rows))
        true = to_unit_range(torch.stack(self.painted(self.rows[:count])))
        decoded = self.shipped().decode(self.resampled[:count]).cpu()
        save_sheet(path, torch.stack([true, decoded], dim=1).flatten(0, 1))

    def export(self) -> None:
        """Write vae/."""
        checkpoint.save_vae(self.config.out, self.shipped(), self.config.size)

    def shipped(self) -> VAE:
        """The VAE with its decoder's weights interpolated from before fine-tuning to now.

        Interpolation keeps most of both (Wortsman et al. 2022, Robust fine-tuning, section 4).
        """
        between = copy.deepcopy(self.vae)
        now = flat_weights(between)
        set_flat_weights(between, torch.lerp(self.before.to(now), now, FINETUNED_SHARE))
        return between


def crop_start(last: int, rng: random.Random) -> int:
    """Where a crop begins along an axis, 0 … last: often at a border, in its place there."""
    return rng.choice((0, last)) if rng.random() < BORDER_SHARE else rng.randint(0, last)


def flat_weights(vae: VAE) -> Tensor:
    """The fine-tuned weights as one vector, whatever their memory format."""
    return torch.cat([weight.detach().flatten() for weight in decoding_weights(vae)])


def set_flat_weights(vae: VAE, row: Tensor) -> None:
    """Set a VAE's decoding weights from one vector."""
    with torch.no_grad():
        weights = decoding_weights(vae)
        parts = row.split([weight.numel() for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.copy_(part.view_as(weight))


def decoding_weights(vae: VAE) -> list[nn.Parameter]:
    """The weights of the decoder and of the 1×1 convolution before it."""
    return [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]


def before_finetuning(vae: VAE, config: TrainConfig, accelerator: Accelerator) -> Tensor:
    """Reset the decoder to its weights before any fine-tuning; returns them as one vector.

    They are cached in the run's folder as long as the encoder stays the same: the model's folder
    holds the fine-tuned ones, and a run that starts over needs the originals.
    """
    key, resuming = digest(vae.encoder, vae.quant_conv), replace(config, resume=True)
    row = cached("untaught", key, lambda: flat_weights(vae), resuming, accelerator)
    set_flat_weights(vae, row)
    return row


def rows_to_noise(pictures: Pictures, count: int, seed: int) -> list[int]:
    """Pick `count` rows, half of them plain pictures on white if there are enough."""
    plain = [n for n, row in enumerate(pictures.rows) if row.plain]
    others = [n for n, row in enumerate(pictures.rows) if not row.plain]
    half = min(count - count // 2 if others else count, len(plain))
    picked = [plain[n] for n in shuffled_indices(max(len(plain), 1), 0, half, seed)]
    rest = min(count - half, len(others))
    return picked + [others[n] for n in shuffled_indices(max(len(others), 1), 0, rest, seed)]


def resampled_latents(
    vae: VAE, pictures: Pictures, rows: list[int], config: TrainConfig, accelerator: Accelerator
) -> Tensor:
    """The rows' latents, and each of them partly noised and resampled: (2, N, C, h, w).

    They are cached in the run's folder, as all latents are. Raises BadFile without a U-Net.
    """
    unet = load_trained_unet(config)
    text = text_encoder(config, pictures, accelerator, from_checkpoint=True)
    settings = str((rows, config.size, config.cfg, config.sampler))
    key = digest(settings, pictures.fingerprint(), vae.encoder, vae.quant_conv, text, unet)
    device = accelerator.device
    vae, text, unet = vae.to(device), text.to(device).eval(), unet.to(device)

    def make() -> Tensor:
        parts = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            captions = [pictures.rows[n].captions[0] for n in some]
            begin = START_STEPS[start // BATCH % len(START_STEPS)]
            generator = torch.Generator(device).manual_seed(config.seed + start)
            with torch.no_grad(), accelerator.autocast():
                x0 = encode_rows(vae, pictures, some, config.size, device)
                resampled = sample_from(x0, captions, begin, text, unet, config, generator)
            parts.append(torch.stack([x0, resampled]))
        return torch.cat(parts, dim=1)

    return cached("resampled", key, make, config, accelerator)


def sample_from(
    x0: Tensor,
    captions: list[str],
    begin: int,
    text: TextEncoder,
    unet: UNet,
    config: TrainConfig,
    generator: torch.Generator,
) -> Tensor:
    """Noise latents (B, C, h, w) to the level of step `begin` of STEPS and sample from there."""
    levels = sampling_levels(config, STEPS)[begin:]
    first = LevelBatch(torch.tensor(levels[0].alpha), torch.tensor(levels[0].sigma))
    words = text.encode(captions), text.encode([""] * len(captions))

    def noise() -> Tensor:
        return torch.randn(x0.shape, generator=generator, device=x0.device)

    x = add_noise(x0, noise(), first)
    denoise = guided_denoiser(unet, config, *words, config.cfg)
    return sample_latents(denoise, x, levels, config.sampler, noise)
