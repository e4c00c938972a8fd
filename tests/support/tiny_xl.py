"""Tiny SDXL models, refiners and distilled ones: random weights, both layouts, by diffusers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.support import tiny
from txt2img.models.tokenizer import EOS, Tokenizer
from txt2img.weights.tokenizer_files import clip_tokenizer

SCALING = 0.13025
Text = CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class Sizes:
    """What sets one model apart; `widths` are the two encoders', or the second's alone."""

    channels: tuple[int, ...] = (64, 64, 128)
    heads: tuple[int, ...] = (1, 1, 2)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 2
    widths: tuple[int, ...] = (64, 128)
    text_layers: tuple[int, ...] = (3, 4)
    mlp: tuple[int, ...] = (64, 64)
    projection: int = 96
    numbers: int = 6
    vae_channels: tuple[int, ...] = (32, 32, 64)
    sample: int = 16
    more: Mapping[str, object] = field(  # of the U-Net's config
        default_factory=lambda: {"transformer_layers_per_block": (1, 2, 3)}
    )


DISTILLED = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 3], [2, 1, 1], 1],
}
BASE = Sizes()
REFINER = Sizes(
    channels=(64, 64, 128, 128),
    heads=(1, 1, 2, 2),
    attention=(False, True, True, False),
    widths=(128,),
    text_layers=(4,),
    mlp=(64,),
    numbers=5,
    more={"transformer_layers_per_block": 2},
)
SSD = Sizes(more=DISTILLED)
INPAINT = Sizes(more={"transformer_layers_per_block": (1, 1, 1), "in_channels": 9})
PIX2PIX = Sizes(more={"transformer_layers_per_block": (1, 1, 1), "in_channels": 8})
FULL = Sizes(
    channels=(320, 640, 1280),
    heads=(5, 10, 20),
    widths=(768, 1280),
    text_layers=(12, 32),
    mlp=(3072, 5120),
    projection=1280,
    vae_channels=(128, 256, 512, 512),
    sample=128,
    more={"transformer_layers_per_block": (1, 2, 10)},
)
FULL_REFINER = Sizes(
    channels=(384, 768, 1536, 1536),
    heads=(6, 12, 24, 24),
    attention=(False, True, True, False),
    widths=(1280,),
    text_layers=(32,),
    mlp=(5120,),
    projection=1280,
    numbers=5,
    vae_channels=(128, 256, 512, 512),
    sample=128,
    more={"transformer_layers_per_block": 4},
)


@dataclass(frozen=True)
class TinyXL:
    """One model: its networks in diffusers and transformers, and its two layouts on disk."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    texts: tuple[Text, ...]
    folder: Path
    file: Path


@cache
def base() -> TinyXL:
    """SDXL's structure."""
    return model(BASE, "tiny-xl")


@cache
def refiner() -> TinyXL:
    """The refiner's: the second encoder alone, and a score in place of the target size."""
    return model(REFINER, "tiny-xl-refiner")


@cache
def ssd() -> TinyXL:
    """SSD-1B's: no attention in the middle, depths of their own on the way up."""
    return model(SSD, "tiny-ssd")


@cache
def inpaint() -> TinyXL:
    """SDXL's structure with nine channels in."""
    return model(INPAINT, "tiny-xl-inpaint")


@cache
def pix2pix() -> TinyXL:
    """SDXL's structure with a picture beside the latent (InstructPix2Pix)."""
    return model(PIX2PIX, "tiny-xl-pix2pix")


def model(sizes: Sizes, name: str) -> TinyXL:
    """A model of random weights, written as a folder and as a single file."""
    torch.manual_seed(len(name))
    root = Path(tiny._ROOT.name)
    unet, vae, texts = networks(sizes)
    for network in (unet, vae, *texts):
        tiny._scatter(network)
        network.eval().requires_grad_(False)
    folder, file = root / name, root / f"{name}.safetensors"
    write_folder(folder, unet, vae, texts)
    save_file(original(unet, vae, texts), file)
    return TinyXL(unet, vae, texts, folder, file)


def networks(sizes: Sizes) -> tuple[UNet2DConditionModel, AutoencoderKL, tuple[Text, ...]]:
    """The networks, as diffusers and transformers make them."""
    levels = len(sizes.vae_channels)
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in sizes.attention]
    unet = UNet2DConditionModel(
        sample_size=sizes.sample,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        down_block_types=tuple(down),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        cross_attention_dim=sum(sizes.widths),
        attention_head_dim=sizes.heads,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=sizes.projection + 256 * sizes.numbers,
        **sizes.more,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.vae_channels,
        layers_per_block=2,
        scaling_factor=SCALING,
    )
    return unet, vae, texts_of(sizes)


def texts_of(sizes: Sizes) -> tuple[Text, ...]:
    """CLIP-L where the model has two encoders, then OpenCLIP's."""
    made: list[Text] = []
    rows = zip(sizes.widths, sizes.text_layers, sizes.mlp, strict=True)
    for number, (width, layers, mlp) in enumerate(rows, start=1):
        last = number == len(sizes.widths)
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            max_position_embeddings=77,
            hidden_act="gelu" if last else "quick_gelu",
            projection_dim=sizes.projection,
            eos_token_id=2,  # as published: it means the greatest number of a row
        )
        made.append((CLIPTextModelWithProjection if last else CLIPTextModel)(config))
    return tuple(made)


def write_folder(
    folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, texts: tuple[Text, ...]
) -> None:
    """A diffusers folder as SDXL's are published."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    two = len(texts) == 2
    for text, end in zip(texts, ("", "_2") if two else ("_2",), strict=True):
        text.save_pretrained(folder / f"text_encoder{end}")
        save_file(
            {name: value.contiguous() for name, value in published(text).items()},
            folder / f"text_encoder{end}" / "model.safetensors",
            {"format": "pt"},
        )
        tiny.write_tokenizer(folder / f"tokenizer{end}", tokenizer(end))
    (folder / "scheduler").mkdir()
    scheduler = tiny.SCHEDULER | {"prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": f"StableDiffusionXL{'' if two else 'Img2Img'}Pipeline",
        "force_zeros_for_empty_prompt": two,
        "text_encoder": ["transformers", "CLIPTextModel"] if two else [None, None],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def tokenizer(end: str) -> Tokenizer:
    """CLIP's, short prompts filled as the first or the second encoder wants it."""
    return clip_tokenizer(77, "!" if end else EOS)


def published(text: nn.Module) -> tiny.State:
    """A text encoder's weights under the names of published folders."""
    state = text.state_dict()
    return {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": v
        for name, v in state.items()
    }


def original(unet: UNet2DConditionModel, vae: AutoencoderKL, texts: tuple[Text, ...]) -> tiny.State:
    """All weights in one dictionary, named as in the first published SDXL checkpoints."""
    levels, layers = len(unet.config["block_out_channels"]), unet.config["layers_per_block"]
    made = tiny.ldm_unet(unet.state_dict(), levels, layers)
    made |= tiny.ldm_vae(vae.state_dict(), len(vae.config["block_out_channels"]))
    place = len(texts) - 1
    if place:
        start = "conditioner.embedders.0.transformer"
        made |= {f"{start}.{name}": value for name, value in published(texts[0]).items()}
        made[f"{start}.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    made |= open_clip(published(texts[-1]), f"conditioner.embedders.{place}.model")
    return {key: value.contiguous().clone() for key, value in made.items()}


def open_clip(state: tiny.State, prefix: str) -> tiny.State:
    """OpenCLIP's names; SDXL uses all layers, and its projection is (from, to)."""
    bare = {n.removeprefix("text_model."): v for n, v in state.items() if "projection" not in n}
    layers = 1 + max(int(name.split(".")[2]) for name in bare if ".layers." in name)
    made = {
        name.replace("cond_stage_model.model", prefix): value
        for name, value in tiny.open_clip(bare).items()
        if f".resblocks.{layers}." not in name
    }
    return made | {f"{prefix}.text_projection": state["text_projection.weight"].T}
