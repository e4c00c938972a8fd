"""Writes tests/support/keys by diffusers' and transformers' own networks and converters."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.support import published, tiny, tiny_xl

BUFFERS = ("alphas_cumprod", "alphas_cumprod_prev", "betas", "sqrt_alphas_cumprod")
State = dict[str, Tensor]


def main() -> int:
    """Make every list."""
    with torch.device("meta"):
        for name, config in published.UNETS.items():
            _unet(name, config)
        vae = AutoencoderKL.from_config(published.VAE).state_dict()
        original = tiny.ldm_vae(vae, 4)
        types = {"down_block_types": (0,) * 4, "up_block_types": (0,) * 4}
        _same(convert_ldm_vae_checkpoint(dict(original), types), vae)
        _write("vae", vae)
        _write("original-vae", _below(original, "first_stage_model"))
        for name, config in published.TEXTS.items():
            _text(name, config)
        _write("original-leftovers", {name: torch.zeros(1000) for name in BUFFERS})
    return 0


def _unet(name: str, config: published.Config) -> None:
    state = UNet2DConditionModel.from_config(config).state_dict()
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    original = tiny.ldm_unet(state, levels, layers)
    original = {n.replace("time_embedding.", "time_embed."): v for n, v in original.items()}
    told = {
        "layers_per_block": layers,
        "class_embed_type": None,
        "addition_embed_type": config.get("addition_embed_type"),
    }
    middle = "mid_block_type" not in config
    if middle and "time_cond_proj_dim" not in config:  # which diffusers' converter does not know
        _same(convert_ldm_unet_checkpoint(dict(original), told), state)
    _write(f"unet-{name}", state)
    _write(f"original-unet-{name}", _below(original, "model.diffusion_model"))


def _text(name: str, config: published.Config) -> None:
    projected = name == "clip-g"
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    state = tiny_xl.published(kind(CLIPTextConfig(**config)))
    _write(name, state)
    prefix = "conditioner.embedders.0.model"
    if projected:
        _write(f"original-{name}", _below(tiny_xl.open_clip(state, prefix), prefix))
    elif name == "clip-h":
        bare = {n.removeprefix("text_model."): v for n, v in state.items()}
        original = _below(tiny.open_clip(bare), "cond_stage_model.model")
        _write(f"original-{name}", original)
    else:
        ids = {"text_model.embeddings.position_ids": torch.zeros(1, 77)}
        _write(f"original-{name}", state | ids)


def _same(converted: State, wanted: State) -> None:
    """Stop unless diffusers' converter gives exactly the names and shapes wanted."""
    if set(converted) != set(wanted):
        raise SystemExit(f"the converter differs in {sorted(set(converted) ^ set(wanted))[:4]}")


def _below(state: State, prefix: str) -> State:
    return {n.removeprefix(f"{prefix}."): v for n, v in state.items() if n.startswith(prefix)}


def _write(name: str, state: State) -> None:
    published.write(name, {key: tuple(value.shape) for key, value in state.items()})


if __name__ == "__main__":
    raise SystemExit(main())
