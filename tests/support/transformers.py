"""Diffusion transformers of diffusers: random weights, and published sizes without any."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders import single_file_utils
from torch import Tensor, nn

from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import transformer_configs as configs
from txt2img.weights.layouts import transformer_key_maps as key_maps
from txt2img.weights.layouts.transformer_key_maps import LayerMap

State = dict[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """One of diffusers' transformers, and what reads it here."""

    theirs: type[nn.Module]
    to_diffusers: Callable[[State], State]  # diffusers' converter of single files
    from_diffusers: Callable[[Mapping[str, object]], object]
    from_tensors: Callable[[Mapping[str, TensorRef]], object]
    layers: Callable[[object], LayerMap]


FLUX = Architecture(
    FluxTransformer2DModel,
    single_file_utils.convert_flux_transformer_checkpoint_to_diffusers,
    configs.flux_from_diffusers,
    configs.flux_config,
    key_maps.flux_layers,
)
SD3 = Architecture(
    SD3Transformer2DModel,
    single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers,
    configs.sd3_from_diffusers,
    configs.sd3_config,
    key_maps.sd3_layers,
)
Z_IMAGE = Architecture(
    ZImageTransformer2DModel,
    single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
    configs.z_image_from_diffusers,
    configs.z_image_config,
    key_maps.z_image_layers,
)
FLUX2 = Architecture(
    Flux2Transformer2DModel,
    single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
    configs.flux2_from_diffusers,
    configs.flux2_config,
    key_maps.flux2_layers,
)
_FLUX_DEV = {"guidance_embeds": True}
_SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
# Published models: architecture and what differs from diffusers' defaults.
PUBLISHED: dict[str, tuple[Architecture, dict[str, object]]] = {
    "flux-dev": (FLUX, _FLUX_DEV),
    "flux-schnell": (FLUX, {}),
    "flux-fill": (FLUX, {**_FLUX_DEV, "in_channels": 384, "out_channels": 64}),
    "flux-depth": (FLUX, {**_FLUX_DEV, "in_channels": 128, "out_channels": 64}),
    "sd3-medium": (SD3, {**_SD3, "pos_embed_max_size": 192}),
    "sd35-medium": (
        SD3,
        {
            **_SD3,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
            "pos_embed_max_size": 384,
        },
    ),
    "sd35-large": (
        SD3,
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "qk_norm": "rms_norm",
            "pos_embed_max_size": 192,
        },
    ),
    "z-image": (Z_IMAGE, {}),
    "flux2-klein-4b": (
        FLUX2,
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "flux2-klein-9b": (
        FLUX2,
        {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
    ),
    "flux2-dev": (FLUX2, {}),
}


def config_of(network: nn.Module) -> dict[str, object]:
    """What diffusers writes to a network's config.json."""
    return dict(network.config) | {"_class_name": type(network).__name__}


@cache
def full(name: str) -> nn.Module:
    """A published model's network on the meta device."""
    architecture, config = PUBLISHED[name]
    with torch.device("meta"):
        return architecture.theirs(**config)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for all parameters: new ones are ones, zeros, or too small to matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        std = value[0].numel() ** -0.5 if value.ndim > 1 else 0.5
        nn.init.normal_(value, std=std, generator=generator)
        if "norm" in name and value.ndim == 1 and name.endswith("weight"):
            value.data += 1
    return network.eval()


def original(state: State, layers: LayerMap) -> State:
    """The state dict in the layout of single files, by a map read backwards."""
    back: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        layer = name.rpartition(".")[0]
        swapped = value.roll(len(value) // 2, 0) if layer in layers.swapped else value
        theirs, _, kind = layers.original(name).rpartition(".")
        kind = name.rpartition(".")[2] if theirs in layers.fused else kind
        back.setdefault(f"{theirs}.{kind}" if theirs else kind, {})[layer] = swapped
    result = {}
    for name, parts in back.items():
        order = layers.fused.get(name.rpartition(".")[0], parts)
        result[name] = torch.cat([parts[ours] for ours in order])
    return result
