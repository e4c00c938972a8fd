"""Tiny ControlNets with random weights, by diffusers, in every layout."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from safetensors.torch import save_file

from tests.support import tiny, tiny_xl
from tests.support.tiny import State

HINT = (8, 12, 16)  # channels: two halvings, as many as the tiny VAEs' encoders have
MODELS = {"sd1": tiny.sd1, "sd2": tiny.sd2, "xl": tiny_xl.base}


@dataclass(frozen=True)
class TinyControl:
    """A ControlNet of diffusers, its folder, and its file in the original layout."""

    network: ControlNetModel
    folder: Path
    file: Path


@cache
def control(name: str, seed: int = 0) -> TinyControl:
    """A ControlNet for one of MODELS."""
    return _written(_copy_of(MODELS[name]().unet, seed), f"{name}-control-{seed}")


@cache
def pooling() -> TinyControl:
    """Shuffle's: residuals are averaged over the map."""
    network = _copy_of(tiny.sd1().unet, 1)
    network.register_to_config(global_pool_conditions=True)
    return _written(network, "sd1-shuffle")


@cache
def small(blocks: int) -> TinyControl:
    """SDXL's small variants: one with some transformer blocks, one without any."""
    torch.manual_seed(blocks)
    has = bool(blocks)
    network = ControlNetModel(
        **{**_config(tiny_xl.base().unet), "transformer_layers_per_block": blocks or 1},
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D" if has else "DownBlock2D"] * 2),
        mid_block_type="UNetMidBlock2DCrossAttn" if has else "UNetMidBlock2D",
        conditioning_embedding_out_channels=HINT,
    )
    return _written(_scattered(network), f"xl-small-{blocks}")


@cache
def union(types: int = 6) -> Path:
    """A Union model for SDXL, as a folder."""
    torch.manual_seed(types)
    unet = tiny_xl.base().unet
    width = unet.config["block_out_channels"][0]
    network = ControlNetUnionModel(
        **_config(unet),
        down_block_types=unet.config["down_block_types"],
        transformer_layers_per_block=unet.config["transformer_layers_per_block"],
        conditioning_embedding_out_channels=HINT,
        num_control_type=types,
        num_trans_channel=width,
        num_proj_channel=width,
    )
    folder = Path(tiny._ROOT.name) / f"xl-union-{types}"
    _scattered(network).save_pretrained(folder)
    return folder


@cache
def lora(rank: int = 4) -> tuple[ControlNetModel, Path]:
    """A Control-LoRA's file, and the whole ControlNet that it stands for."""
    torch.manual_seed(rank)
    whole, base = _copy_of(tiny_xl.base().unet, 3), tiny_xl.base().unet.state_dict()
    stored: State = {"lora_controlnet": torch.zeros(0)}
    state = whole.state_dict()
    for name, value in original(whole).items():
        own = NAMES[name]
        weight = base.get(own)
        if weight is None or value.ndim < 2 or own.startswith("conv_in"):
            stored[name] = value
            continue
        up = 0.05 * torch.randn(len(value), rank)
        down = 0.05 * torch.randn(rank, value[0].numel())
        stem = name.removesuffix(".weight")
        shape = (rank, *value.shape[1:])
        stored |= {f"{stem}.up": up, f"{stem}.down": down.reshape(shape)}
        state[own] = weight + (up @ down).reshape(weight.shape)
    whole.load_state_dict(state)
    path = Path(tiny._ROOT.name) / "control-lora.safetensors"
    save_file({name: value.contiguous() for name, value in stored.items()}, path)
    return whole, path


NAMES: dict[str, str] = {}  # of the original layout → diffusers', of what was written so far


def original(network: ControlNetModel) -> State:
    """A ControlNet's weights under the names of the original layout, without a prefix."""
    state, config = network.state_dict(), network.config
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    made: State = {}
    for name, value in state.items():
        if name.startswith("controlnet_down_blocks."):
            number, _, end = name.removeprefix("controlnet_down_blocks.").partition(".")
            new = f"zero_convs.{number}.0.{end}"
        elif name.startswith("controlnet_mid_block."):
            new = name.replace("controlnet_mid_block", "middle_block_out.0")
        elif name.startswith("controlnet_cond_embedding."):
            part, _, end = name.removeprefix("controlnet_cond_embedding.").rpartition(".")
            ends = {
                "conv_in": 0,
                "conv_out": 4 * len(config["conditioning_embedding_out_channels"]) - 2,
            }
            place = ends[part] if part in ends else 2 * int(part.partition(".")[2]) + 2
            new = f"input_hint_block.{place}.{end}"
        else:
            [new] = tiny.ldm_unet({name: value}, levels, layers)
            new = new.removeprefix("model.diffusion_model.")
        made[new], NAMES[new] = value, name
    return made


def _config(unet: UNet2DConditionModel) -> dict[str, object]:
    """What a copy of a U-Net's first half has of its config."""
    names = (
        *("block_out_channels", "cross_attention_dim", "attention_head_dim", "layers_per_block"),
        *("use_linear_projection", "addition_embed_type", "addition_time_embed_dim"),
        "projection_class_embeddings_input_dim",
    )
    return {name: unet.config[name] for name in names}


def _copy_of(unet: UNet2DConditionModel, seed: int) -> ControlNetModel:
    torch.manual_seed(seed)
    network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT)
    return _scattered(network)


def _scattered(network: torch.nn.Module) -> ControlNetModel:
    """A network with every weight moved, those that are zero as well."""
    tiny._scatter(network)
    return network.eval().requires_grad_(False)


def _written(network: ControlNetModel, name: str) -> TinyControl:
    folder = Path(tiny._ROOT.name) / name
    network.save_pretrained(folder)
    file = folder.with_suffix(".safetensors")
    made = {f"control_model.{key}": value.clone() for key, value in original(network).items()}
    save_file(made, file)
    return TinyControl(network, folder, file)
