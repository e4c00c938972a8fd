"""Layers as ComfyUI quantises them: fp8 and int8 with scales, rotated by ConvRot, described."""

import json
from collections.abc import Mapping

import torch
from torch import Tensor

H4 = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).double() / 2
FLOAT8 = {
    "float8_e4m3fn": (torch.float8_e4m3fn, 448.0),
    "float8_e5m2": (torch.float8_e5m2, 57344.0),
}


def description(**layer: object) -> Tensor:
    """A layer's description, as JSON in bytes."""
    return torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)


def rotation(group: int) -> Tensor:
    """The Kronecker power of H4 that ConvRot rotates a group of inputs by."""
    whole = H4
    while len(whole) < group:
        whole = torch.kron(whole, H4)
    return whole


def rotate(weight: Tensor, group: int) -> Tensor:
    """A weight with each group of its inputs rotated, in float64."""
    return (weight.double().unflatten(-1, (-1, group)) @ rotation(group).T).flatten(-2)


def int8(weight: Tensor, group: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """A layer in int8, a scale for each row, and its weight once dequantised."""
    turned = rotate(weight, group) if group else weight.double()
    scale = (turned.abs().amax(1, keepdim=True) / 127).float()
    numbers = (turned / scale).round().clamp(-128, 127).to(torch.int8)
    back = numbers.double() * scale.double()
    told = {"convrot": True, "convrot_groupsize": group} if group else {}
    parts = {
        "weight": numbers,
        "weight_scale": scale,
        "comfy_quant": description(format="int8_tensorwise", **told),
    }
    return parts, (rotate(back, group) if group else back).float()


def fp8(
    weight: Tensor, kind: str = "float8_e4m3fn", rows: bool = False, old: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """A layer in fp8, with one scale or one for each row, and its weight once dequantised."""
    dtype, most = FLOAT8[kind]
    largest = weight.flatten(1).abs().amax(1) if rows else weight.abs().max()
    scale = (largest / most).float()
    wide = scale.reshape(-1, *[1] * (weight.ndim - 1)) if rows else scale
    numbers = (weight / wide).to(dtype)
    parts = {
        "weight": numbers,
        **({"scale_weight": scale} if old else {"weight_scale": scale}),
        **({"scale_input": scale} if old else {"input_scale": torch.tensor(1.0)}),
        **({} if old else {"comfy_quant": description(format=kind)}),
    }
    return parts, numbers.float() * wide


def quantized(
    tensors: Mapping[str, Tensor], kind: str, group: int = 64
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A network's tensors with its matrices quantised, and all as they are once dequantised."""
    narrow, wide = dict(tensors), dict(tensors)
    if kind == "scaled_fp8":
        narrow["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    for name, value in tensors.items():
        if value.ndim != 2 or not name.endswith(".weight") or value.shape[1] % group:
            continue
        layer = name.removesuffix("weight")
        made = {
            "int8": lambda weight: int8(weight),
            "convrot": lambda weight: int8(weight, group),
            "fp8": lambda weight: fp8(weight),
            "fp8 rows": lambda weight: fp8(weight, rows=True),
            "scaled_fp8": lambda weight: fp8(weight, old=True),
        }[kind]
        parts, wide[name] = made(value.float())
        narrow |= {f"{layer}{part}": one.clone() for part, one in parts.items()}
    return narrow, wide
