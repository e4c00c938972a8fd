"""Diffusion transformers of diffusers: random weights, and published sizes without any."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import FluxTransformer2DModel
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
_FLUX_DEV = {"guidance_embeds": True}
# Published models: architecture and what differs from diffusers' defaults.
PUBLISHED: dict[str, tuple[Architecture, dict[str, object]]] = {
    "flux-dev": (FLUX, _FLUX_DEV),
    "flux-schnell": (FLUX, {}),
    "flux-fill": (FLUX, {**_FLUX_DEV, "in_channels": 384, "out_channels": 64}),
    "flux-depth": (FLUX, {**_FLUX_DEV, "in_channels": 128, "out_channels": 64}),
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
        nn.init.normal_(value, std=0.3 if value.ndim > 1 else 0.5, generator=generator)
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
