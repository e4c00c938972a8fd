"""IP-Adapters and a CLIP image encoder with random weights, for a U-Net of diffusers."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from txt2img.models.control_configs import IPAdapterConfig
from txt2img.models.ip_adapter import PROJECTIONS

KINDS = ("base", "plus", "full")
_ROOT = TemporaryDirectory(prefix="txt2img-ip-adapters-")
WIDTH, PROJECTION = 64, 48  # of the encoder


@cache
def encoder() -> CLIPVisionModelWithProjection:
    """A tiny image encoder, whose folder is `encoder_folder`."""
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=96,
        projection_dim=PROJECTION,
        num_hidden_layers=3,
        num_attention_heads=1,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    network = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    for value in network.parameters():
        value.copy_(torch.randn(value.shape) * (0.2 if value.ndim > 1 else 0.5))
    return network


@cache
def encoder_folder() -> Path:
    """The encoder as diffusers' `image_encoder/`."""
    folder = Path(_ROOT.name) / "image_encoder"
    encoder().save_pretrained(folder)
    return folder


def projection_state(kind: str, cross_dim: int) -> dict[str, Tensor]:
    """A projection's tensors in the published names."""
    features = PROJECTION if kind == "base" else WIDTH
    sizes = {"plus": (5, 128, 4, 2, 64, 512)}.get(kind, (4,))
    network = PROJECTIONS[kind](IPAdapterConfig(kind, features, cross_dim, (), *sizes))
    state = {}
    for name, value in network.state_dict().items():
        scale = 0.5 if value.ndim < 2 else value.shape[-1] ** -0.5
        state[f"image_proj.{name}"] = torch.randn(value.shape) * scale
    for name in [name for name in state if name.endswith(".to_k.weight")]:
        k, v = state.pop(name), state.pop(name.replace("to_k", "to_v"))
        state[name.replace("to_k", "to_kv")] = torch.cat([k, v])
    return state


def state_of(kind: str, unet: UNet2DConditionModel, seed: int = 0) -> dict[str, Tensor]:
    """An IP-Adapter's tensors for a U-Net, numbered as its attentions are."""
    torch.manual_seed(seed + len(kind))
    state = projection_state(kind, unet.config.cross_attention_dim)
    weights = unet.state_dict()
    for place, name in enumerate(unet.attn_processors):
        if "attn2" not in name:
            continue
        for letter in "kv":
            like = weights[name.replace("processor", f"to_{letter}.weight")]
            state[f"ip_adapter.{place}.to_{letter}_ip.weight"] = torch.randn(like.shape) * 0.3
    return state


def file_of(kind: str, unet: UNet2DConditionModel, folder: Path, name: str, seed: int = 0) -> Path:
    """An IP-Adapter's file."""
    path = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in state_of(kind, unet, seed).items()}, path)
    return path


def nested(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The state as diffusers takes it."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return parts
