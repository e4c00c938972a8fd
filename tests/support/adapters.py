"""Adapter files with random tensors for tiny models, named apart from the tables under test."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
Pairs = dict[str, tuple[Tensor, Tensor]]  # a layer's name in diffusers → down, up
ATTENTION = r"\.to_(q|k|v|out\.0)$"
# What the distilled LCM-LoRAs of SD 1 touch.
LCM = (
    r"\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2"
    r"|conv_shortcut|time_emb_proj)$|samplers\.0\.conv$"
)
TEXT = r"encoder\.layers\.\d\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$"


def pairs(network: nn.Module, which: str, rank: int = 4) -> Pairs:
    """A down and an up for each layer whose name fits."""
    made: Pairs = {}
    for name, layer in network.named_modules():
        if not re.search(which, name) or not isinstance(layer.weight, Tensor):
            continue
        out, *rest = layer.weight.shape
        kernel = [1] * (len(rest) - 1)
        down = torch.randn(rank, *rest) / rest[0] ** 0.5
        made[name.removeprefix("text_model.")] = down, torch.randn(out, rank, *kernel) / rank
    return made


def kohya(found: Pairs, prefix: str = "lora_unet_", alpha: float | None = 2.0) -> State:
    """The pairs as kohya names them."""
    made: State = {}
    for name, (down, up) in found.items():
        flat = prefix + name.replace(".", "_")
        made |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
        if alpha is not None:
            made[f"{flat}.alpha"] = torch.tensor(alpha)
    return made


def peft(found: Pairs, prefix: str = "unet.") -> State:
    """The pairs as peft names them."""
    made: State = {}
    for name, (down, up) in found.items():
        made |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return made


def write(path: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of copies, so that none share memory."""
    save_file({name: value.clone().contiguous() for name, value in state.items()}, path, metadata)
    return path
