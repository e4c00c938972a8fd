"""Tiny Stable Diffusion models with random weights, in both layouts, made by diffusers.

The original layout's names are made here by search and replace, apart from the tables under test.
"""

import atexit
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from txt2img.models.tokenizer import BOS, EOS, Tokenizer
from txt2img.weights.tokenizer_files import clip_tokenizer

_ROOT = tempfile.TemporaryDirectory(prefix="txt2img-tests-")
atexit.register(_ROOT.cleanup)
os.environ["XDG_CACHE_HOME"] = f"{_ROOT.name}/cache"

State = dict[str, Tensor]
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
# The same for a scheduler of diffusers that is to step as ours does: to where alpha is 1.
LEADING = {key: value for key, value in SCHEDULER.items() if key[0] != "_"} | {
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
}


@dataclass(frozen=True)
class Tiny:
    """One model: its networks in diffusers and transformers, and its two layouts on disk."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: CLIPTextModel
    tokenizer: Tokenizer
    scheduler: dict[str, object]
    folder: Path
    file: Path  # in the original layout


@dataclass(frozen=True)
class Sizes:
    """What sets one tiny model apart."""

    channels: tuple[int, ...]
    heads: int | tuple[int, ...]
    width: int  # of the text encoder
    text_layers: int
    sd2: bool
    vae_channels: tuple[int, ...] = (32, 32, 64)
    layers: int = 2
    text_heads: int = 1
    mlp: int = 64
    sample: int = 16
    inputs: int = 4  # channels


SD1 = Sizes((32, 64), 8, 32, 3, sd2=False)
SD2 = Sizes((64, 128), (1, 2), 64, 3, sd2=True)
FULL_SD1 = Sizes(
    (320, 640, 1280, 1280), 8, 768, 12, False, (128, 256, 512, 512), text_heads=12, mlp=3072
)
FULL_SD2 = Sizes(
    (320, 640, 1280, 1280),
    (5, 10, 20, 20),
    1024,
    23,
    True,
    (128, 256, 512, 512),
    text_heads=16,
    mlp=4096,
)


@cache
def sd1() -> Tiny:
    """An SD 1 model: eps, convolutions around attention, CLIP, short prompts end in EOS."""
    return model(SD1, Path(_ROOT.name), "tiny-sd1")


@cache
def sd2() -> Tiny:
    """An SD 2 model: v, linear layers around attention, OpenCLIP, short prompts end in "!"."""
    return model(SD2, Path(_ROOT.name), "tiny-sd2")


@cache
def inpaint() -> Tiny:
    """SD 1's inpainting model: a mask and a picture beside the latent."""
    return model(replace(SD1, inputs=9), Path(_ROOT.name), "tiny-inpaint")


@cache
def pix2pix() -> Tiny:
    """InstructPix2Pix: a picture beside the latent."""
    return model(replace(SD1, inputs=8), Path(_ROOT.name), "tiny-pix2pix")


def model(sizes: Sizes, root: Path, name: str, dtype: torch.dtype = torch.float32) -> Tiny:
    """A model of random weights, written into `root` as a folder and as a single file."""
    torch.manual_seed(len(name) + sizes.width)
    unet, vae, text = networks(sizes)
    for network in (unet, vae, text):
        _scatter(network)
        network.eval().requires_grad_(False)
        if dtype != torch.float32:
            network.to(dtype)
    tokenizer = clip_tokenizer(77, "!" if sizes.sd2 else EOS)
    scheduler = SCHEDULER | {"prediction_type": "v_prediction" if sizes.sd2 else "epsilon"}
    folder, file = root / name, root / f"{name}.safetensors"
    write_folder(folder, unet, vae, text, tokenizer, scheduler)
    metadata = {"modelspec.prediction_type": "v"} if sizes.sd2 else {}
    save_file(original(unet, vae, text, sizes.sd2), file, metadata)
    return Tiny(unet, vae, text, tokenizer, scheduler, folder, file)


@cache
def own() -> Path:
    """The folder of a model such as training writes: no published one has any of its settings."""
    torch.manual_seed(7)
    levels = 2
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=8,
        scaling_factor=0.5,
        shift_factor=0.25,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", BOS, EOS]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(vocab, [("r", "e"), ("re", "d</w>")], length=32)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )
    scheduler = SCHEDULER | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    folder = Path(_ROOT.name) / "own"
    write_folder(folder, unet, vae, text, tokenizer, scheduler)
    return folder


def networks(sizes: Sizes) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """The three networks, as diffusers and transformers make them."""
    unet = UNet2DConditionModel(
        sample_size=sizes.sample,
        in_channels=sizes.inputs,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        down_block_types=("CrossAttnDownBlock2D",) * (len(sizes.channels) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(sizes.channels) - 1),
        cross_attention_dim=sizes.width,
        attention_head_dim=sizes.heads,
        use_linear_projection=sizes.sd2,
    )
    levels = len(sizes.vae_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=sizes.vae_channels,
        layers_per_block=2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=sizes.width,
            intermediate_size=sizes.mlp,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            max_position_embeddings=77,
            hidden_act="gelu" if sizes.sd2 else "quick_gelu",
        )
    )
    return unet, vae, text


def _scatter(network: nn.Module) -> None:
    """Move every weight, so that a norm's or a bias's place matters too."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))


def write_folder(
    folder: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    tokenizer: Tokenizer,
    scheduler: Mapping[str, object],
) -> None:
    """A diffusers folder, its text encoder's names as in published ones."""
    for part, name in ((unet, "unet"), (vae, "vae"), (text, "text_encoder")):
        part.save_pretrained(folder / name)
    save_file(
        {f"text_model.{key}": value for key, value in bare(text).items()},
        folder / "text_encoder" / "model.safetensors",
        {"format": "pt"},
    )
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    write_tokenizer(folder / "tokenizer", tokenizer)
    classes = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(classes))


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The files of a slow CLIPTokenizer."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocab))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in tokenizer.merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pad = next(word for word, index in tokenizer.vocab.items() if index == tokenizer.pad_id)
    special = {"bos_token": {"content": BOS}, "eos_token": {"content": EOS}, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"unk_token": EOS}))


def bare(text: CLIPTextModel) -> State:
    """The text encoder's weights under names without `text_model.`, whatever transformers says."""
    return {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}


def original(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel, sd2: bool
) -> State:
    """All weights in one dictionary, named as in the first published checkpoints."""
    levels = len(unet.config["block_out_channels"])
    layers = unet.config["layers_per_block"]
    made = ldm_unet(unet.state_dict(), levels, layers)
    made |= ldm_vae(vae.state_dict(), len(vae.config["block_out_channels"]))
    made |= open_clip(bare(text)) if sd2 else clip(bare(text))
    made |= {"betas": torch.rand(1000), "model_ema.decay": torch.tensor(0.999)}
    return {key: value.contiguous().clone() for key, value in made.items()}


def ldm_unet(state: State, levels: int, layers: int) -> State:
    """diffusers' names of a U-Net → the original ones."""
    made = {}
    for key, value in state.items():
        new = re.sub(r"^time_embedding\.linear_([12])", lambda m: f"time_embed.{m[1]}", key)
        new = new.replace("time_embed.1", "time_embed.0")
        new = re.sub(r"^conv_in", "input_blocks.0.0", new)
        new = new.replace("conv_norm_out", "out.0").replace("conv_out", "out.2")
        new = re.sub(
            r"^(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)",
            lambda m: _block(m[1], int(m[2]), m[3], int(m[4]), layers),
            new,
        )
        new = re.sub(
            r"^down_blocks\.(\d)\.downsamplers\.0\.conv",
            lambda m: f"input_blocks.{(int(m[1]) + 1) * (layers + 1)}.0.op",
            new,
        )
        new = re.sub(
            r"^up_blocks\.(\d)\.upsamplers\.0",
            lambda m: _upsampler(int(m[1]), layers, state),
            new,
        )
        new = re.sub(r"^add_embedding\.linear_([12])", lambda m: f"label_emb.0.{m[1]}", new)
        new = new.replace("label_emb.0.1", "label_emb.0.0")
        new = new.replace("mid_block.attentions.0", "middle_block.1")
        new = new.replace("mid_block.resnets.0", "middle_block.0")
        new = new.replace("mid_block.resnets.1", "middle_block.2")
        if ".resnets." in key:
            new = new.replace("norm1", "in_layers.0").replace("conv1", "in_layers.2")
            new = new.replace("norm2", "out_layers.0").replace("conv2", "out_layers.3")
            new = new.replace("time_emb_proj", "emb_layers.1")
            new = new.replace("conv_shortcut", "skip_connection")
        made[f"model.diffusion_model.{new}"] = value
    assert len(made) == len(state)
    return made


def _upsampler(level: int, layers: int, state: State) -> str:
    """Where the original lists have the step to the larger map: after attention, if any."""
    place = 2 if f"up_blocks.{level}.attentions.0.norm.weight" in state else 1
    return f"output_blocks.{level * (layers + 1) + layers}.{place}"


def _block(way: str, level: int, kind: str, layer: int, layers: int) -> str:
    """Where the original lists have a residual block or the attention after it."""
    index = level * (layers + 1) + layer + (1 if way == "down" else 0)
    place = 0 if kind == "resnets" else 1
    return f"{'input' if way == 'down' else 'output'}_blocks.{index}.{place}"


def ldm_vae(state: State, levels: int) -> State:
    """diffusers' names of a VAE → the original ones, its attention as 1×1 convolutions."""
    made = {}
    for key, value in state.items():
        new = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", new
        )
        new = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0",
            lambda m: f"up.{levels - 1 - int(m[1])}.upsample",
            new,
        )
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attentions" in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = new.replace("to_out.0", "proj_out")
            new = re.sub(r"to_([qkv])", r"\1", new)
            value = value[:, :, None, None] if value.ndim == 2 else value
        made[f"first_stage_model.{new}"] = value
    return made


def clip(state: State) -> State:
    """A CLIP text model's names in SD 1's single files."""
    made = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in state.items()}
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return made | {ids: torch.arange(77)[None]}


def open_clip(state: State) -> State:
    """A CLIP text model in OpenCLIP's layout, with the last layer that SD 2 does not use."""
    renames = {
        "encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn": "attn",
        "final_layer_norm": "ln_final",
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    made: State = {}
    for key, value in state.items():
        if re.search(r"[kv]_proj", key):
            continue
        new = key
        for ours, theirs in renames.items():
            new = new.replace(ours, theirs)
        if "q_proj" in key:
            value = torch.cat([state[key.replace("q_proj", f"{c}_proj")] for c in "qkv"])
            new = re.sub(r"q_proj\.(weight|bias)", r"in_proj_\1", new)
        made[f"cond_stage_model.model.{new}"] = value
    last = max(int(key.split(".")[4]) for key in made if ".resblocks." in key)
    unused = {k.replace(f".{last}.", f".{last + 1}.", 1): v for k, v in made.items()}
    made |= {k: 0 * v for k, v in unused.items() if f".resblocks.{last + 1}." in k}
    width = made["cond_stage_model.model.ln_final.bias"].shape[0]
    made["cond_stage_model.model.text_projection"] = torch.zeros(width, width)
    made["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    return made
