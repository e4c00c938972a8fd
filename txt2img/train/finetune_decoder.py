"""The VAE's decoder, taught once more: it cleans what the U-Net leaves uneven.

A decoder that has seen latents of true pictures alone shows every flaw of a drawn one as a stain.
Here true pictures are noised part of the way and drawn from there, as users' pictures are, with
guidance: the drafts. The decoder learns to give the true picture back. Encoder and latents stay as
they are, so that nothing that the U-Net has learnt is lost, and drawing costs what it did.
"""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from txt2img.models.text_encoder import TextEncoder
from txt2img.models.unet import UNet
from txt2img.models.vae import VAE
from txt2img.train import checkpoint
from txt2img.train.config import TrainConfig
from txt2img.train.data import Kept, Pictures, centred, indices
from txt2img.train.latent_cache import AT_ONCE, digest, encode_rows, kept, load_unet, load_vae
from txt2img.train.losses import LevelBatch, add_noise
from txt2img.train.objectives import DecoderLearner
from txt2img.train.samples import SHEET_PICTURES, denoiser, drawn, levels_of, save_sheet
from txt2img.train.stages import GIB, in_memory_format, rows_at, seeded, text_encoder

STEPS = 12  # from pure noise to a picture
STARTS = (5, 7, 9)  # the steps that drafts begin at: noisier, and the picture would be another
LESSON = 0.3  # of the shipped decoder: with more, copies lose edges and drafts gain hardly anything
TRUE = 0.25  # of what is decoded are latents of true pictures: these must not get worse


class DecoderStage:
    """The decoder learns to see the true pictures in the drafts."""

    name = "decoder"

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.run = config, accelerator, config.decoder_run
        self.rates: dict[str, float] = {}
        self.pictures, self.vae = Pictures(config.data), load_vae(config)
        self.before = untaught(self.vae, config, accelerator)
        self.painted = Kept(self.pictures, config.size, config.keep_gib * GIB)
        self.rows = rows_to_draft(self.pictures, config.drafts, config.seed)
        both = drafts(self.vae, self.pictures, self.rows, config, accelerator)
        self.latents, self.drafts = both
        self.learner = in_memory_format(DecoderLearner(self.vae, config), config)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """The arguments of DecoderLearner: cut-outs of latents and of the pictures they mean."""
        config, size = self.config, self.run.batch_size
        rng, _ = seeded(config, step, self.accelerator)
        picked = rows_at(self.accelerator, len(self.rows), size, step, config.seed)
        painted = self.painted([self.rows[n] for n in picked])
        factor, latents, pixels = config.vae.factor, [], []
        side = min(config.crop // factor, self.latents.shape[-1])
        for n, whole in zip(picked, painted, strict=True):
            source = self.latents if rng.random() < TRUE else self.drafts
            top, left = (rng.randint(0, self.latents.shape[-1] - side) for _ in range(2))
            latents.append(source[n, :, top : top + side, left : left + side])
            top, left, span = top * factor, left * factor, side * factor
            pixels.append(whole[:, top : top + span, left : left + span])
        return torch.stack(latents), centred(torch.stack(pixels).to(self.accelerator.device))

    def draw(self, path: Path) -> None:
        """Drafts as they are decoded, each beside its true picture."""
        count = min(SHEET_PICTURES, len(self.rows))
        true = centred(torch.stack(self.painted(self.rows[:count])))
        decoded = self.shipped().decode(self.drafts[:count]).cpu()
        save_sheet(path, torch.stack([true, decoded], dim=1).flatten(0, 1))

    def export(self) -> None:
        """The VAE's part of the folder."""
        checkpoint.save_vae(self.config.out, self.shipped(), self.config.size)

    def shipped(self) -> VAE:
        """The VAE with a decoder on the way from what it was before the lesson to what it is now.

        Such a mean keeps most of both (Wortsman et al. 2022, Robust fine-tuning, section 4).
        """
        between = copy.deepcopy(self.vae)
        now = in_one_row(between)
        refill(between, torch.lerp(self.before.to(now), now, LESSON))
        return between


def in_one_row(vae: VAE) -> Tensor:
    """The weights that the lesson changes, in one row, whatever order they have in memory."""
    return torch.cat([weight.detach().flatten() for weight in of_decoding(vae)])


def refill(vae: VAE, row: Tensor) -> None:
    """Give a VAE these weights for decoding."""
    with torch.no_grad():
        weights = of_decoding(vae)
        parts = row.split([weight.numel() for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            weight.copy_(part.view_as(weight))


def of_decoding(vae: VAE) -> list[nn.Parameter]:
    """The decoder's weights, and those of the 1×1 convolution before it."""
    return [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]


def untaught(vae: VAE, config: TrainConfig, accelerator: Accelerator) -> Tensor:
    """The decoder's weights, in one row, as they were before any lesson; the VAE has them now.

    They are kept in the run's folder, since what lies in the model's is shipped, for as long as
    the encoder is the same; a run that begins its lessons anew needs them too.
    """
    key, lasting = digest(vae.encoder, vae.quant_conv), replace(config, resume=True)
    row = kept("untaught", key, lambda: in_one_row(vae), lasting, accelerator)
    refill(vae, row)
    return row


def rows_to_draft(pictures: Pictures, count: int, seed: int) -> list[int]:
    """`count` rows, every other one of a single picture on white, as far as there are such."""
    plain = [n for n, row in enumerate(pictures.rows) if row.plain]
    others = [n for n, row in enumerate(pictures.rows) if not row.plain]
    half = min(count - count // 2 if others else count, len(plain))
    picked = [plain[n] for n in indices(max(len(plain), 1), 0, half, seed)]
    rest = min(count - half, len(others))
    return picked + [others[n] for n in indices(max(len(others), 1), 0, rest, seed)]


def drafts(
    vae: VAE, pictures: Pictures, rows: list[int], config: TrainConfig, accelerator: Accelerator
) -> Tensor:
    """The rows' true latents, and each noised part of the way and drawn again: (2, N, C, h, w).

    They are kept in the run's folder, as all latents are. Raises BadFile without a U-Net.
    """
    unet = load_unet(config)
    text = text_encoder(config, pictures, accelerator, taught=True)
    asked = str((rows, config.size, config.cfg, config.sampler))
    key = digest(asked, pictures.fingerprint(), vae.encoder, vae.quant_conv, text, unet)
    device = accelerator.device
    vae, text, unet = vae.to(device), text.to(device).eval(), unet.to(device)

    def make() -> Tensor:
        parts = []
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            captions = [pictures.rows[n].captions[0] for n in some]
            begin = STARTS[start // AT_ONCE % len(STARTS)]
            generator = torch.Generator(device).manual_seed(config.seed + start)
            with torch.no_grad(), accelerator.autocast():
                x0 = encode_rows(vae, pictures, some, config.size, device)
                draft = redrawn(x0, captions, begin, text, unet, config, generator)
            parts.append(torch.stack([x0, draft]))
        return torch.cat(parts, dim=1)

    return kept("drafts", key, make, config, accelerator)


def redrawn(
    x0: Tensor,
    captions: list[str],
    begin: int,
    text: TextEncoder,
    unet: UNet,
    config: TrainConfig,
    generator: torch.Generator,
) -> Tensor:
    """Latents (B, C, h, w) noised as before step `begin` of STEPS, and drawn from there."""
    levels = levels_of(config, STEPS)[begin:]
    first = LevelBatch(torch.tensor(levels[0].alpha), torch.tensor(levels[0].sigma))
    words = text.encode(captions), text.encode([""] * len(captions))

    def noise() -> Tensor:
        return torch.randn(x0.shape, generator=generator, device=x0.device)

    x = add_noise(x0, noise(), first)
    denoise = denoiser(unet, config, *words, config.cfg)
    return drawn(denoise, x, levels, config.sampler, noise)
