"""What adapters do to a weight: LoRA, LoHa, LoKr, GLoRA, IA3, whole differences, and DoRA.

Hu et al. 2021 (LoRA), Hyeon-Woo et al. 2021 (FedPara, which LoHa is), Yeh et al. 2023 (LyCORIS:
LoHa, LoKr, the Tucker form of convolutions), Chavan et al. 2023 (GLoRA), Liu et al. 2022 (IA3),
Liu et al. 2024 (DoRA). What turns a weight is in weights/rotations.py.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from txt2img.weights.adapters import oft

Parts = Mapping[str, Tensor]  # an adapter's tensors for one layer, by role


def changed(weight: Tensor, parts: Parts, alpha: float | None, strength: float) -> Tensor:
    """The weight with an adapter at a strength; float32 in and out, of the same shape.

    KeyError, ValueError or RuntimeError if parts are missing, or do not fit each other or it.
    """
    if any(role in parts for role in oft.TURNING):
        return oft.turned(weight, parts, alpha, strength)
    whole = _shaped(_delta(weight, parts, alpha), weight)
    if "dora" not in parts:
        return weight + strength * whole
    return weight + strength * (_decomposed(weight + whole, parts["dora"]) - weight)


def changed_bias(bias: Tensor, parts: Parts, strength: float) -> Tensor:
    """The bias with an adapter that has a difference for it; as `changed`."""
    name = "diff_b" if "diff_b" in parts else "b_norm"
    return bias + strength * _shaped(parts[name], bias)


def touches_weight(roles: Mapping[str, object]) -> bool:
    """Whether an adapter's parts for a layer change its weight, not only its bias."""
    return bool(set(roles) - {"diff_b", "b_norm"})


def touches_bias(roles: Mapping[str, object]) -> bool:
    """Whether they change its bias."""
    return bool(set(roles) & {"diff_b", "b_norm"})


def fits(weight: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a plain LoRA's parts surely fit a weight, told by shapes; False for what is to try.

    Trying costs: torch loads its compiler for the first product on the meta device, in 1.5 s and
    170 MB, which a small model's picture does not take.
    """
    if set(shapes) != {"down", "up"} or not all(shapes.values()):
        return False
    (rank, *rest), (out, *inner) = shapes["down"], shapes["up"]
    return rank > 0 and (out, prod(inner)) == (weight[0], rank) and _bare(rest) == _bare(weight[1:])


def _bare(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the 1×1 kernel that it may end in."""
    return tuple(shape[:1] if prod(shape[1:]) == 1 else shape)


def _delta(weight: Tensor, parts: Parts, alpha: float | None) -> Tensor:
    """What is added to the weight at strength 1."""
    if "up" in parts or "down" in parts:
        return _lora(parts) * _scale(alpha, parts["down"])
    if any(role.startswith("hada_") for role in parts):
        return _loha(parts) * _scale(alpha, parts["hada_w1_b"])
    if any(role.startswith("lokr_") for role in parts):
        return _lokr(parts, alpha)
    if "a1" in parts:
        return _glora(weight, parts, alpha)
    if "on_output" in parts:
        return weight * _along(parts["on_output"], weight, 0)
    if "on_input" in parts:
        return weight * _along(parts["on_input"], weight, 1)
    return parts["diff"] if "diff" in parts else parts["w_norm"]


def _scale(alpha: float | None, down: Tensor) -> float:
    """alpha / rank; the rank is the rows of what leads down."""
    if not len(down):
        raise ValueError("rank 0")
    return 1.0 if alpha is None else alpha / len(down)


def _lora(parts: Parts) -> Tensor:
    """up · down; a convolution's may have its kernel between the two."""
    up, down = parts["up"], parts["down"]
    if "mid" not in parts:
        return up.flatten(1) @ down.flatten(1)  # (out, in · kernel)
    return torch.einsum("oa,abkl,bi->oikl", up.flatten(1), parts["mid"], down.flatten(1))


def _loha(parts: Parts) -> Tensor:
    """The product, entry by entry, of two matrices of low rank."""
    return _low(parts, "hada_w1", "hada_t1") * _low(parts, "hada_w2", "hada_t2")


def _lokr(parts: Parts, alpha: float | None) -> Tensor:
    """The Kronecker product of a small matrix and a larger one; each may be of low rank."""
    small = parts["lokr_w1"] if "lokr_w1" in parts else _low(parts, "lokr_w1", "")
    large = parts["lokr_w2"] if "lokr_w2" in parts else _low(parts, "lokr_w2", "lokr_t2")
    low = [parts[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    scale = _scale(alpha, low[0]) if low else 1.0
    for _ in range(large.ndim - small.ndim):
        small = small.unsqueeze(-1)
    return scale * torch.kron(small, large.contiguous())  # torch cannot take other strides


def _glora(weight: Tensor, parts: Parts, alpha: float | None) -> Tensor:
    """W · a1 · a2 + b1 · b2; early files have the two of each pair the other way round."""
    a1, a2, b1, b2 = (parts[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if b1.shape[0] != weight.shape[0]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    beside = {"up": b1, "down": b2, **({"mid": parts["bm"]} if "bm" in parts else {})}
    turned = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    return (turned + _lora(beside).reshape(weight.shape)) * _scale(alpha, a2)


def _low(parts: Parts, name: str, core: str) -> Tensor:
    """a · b, or with a Tucker core t (j, r, kernel): Σ t[i, j] · b[j, …] · a[i, …]."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if core not in parts:
        return a @ b.flatten(1)
    return torch.einsum("ijkl,jr,ip->prkl", parts[core], b, a)


def _along(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """One value for each of the weight's rows (axis 0) or columns (axis 1)."""
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    return values.reshape(shape)


def _decomposed(weight: Tensor, magnitude: Tensor) -> Tensor:
    """The weight's rows or columns, as `magnitude` has one number for each, at those lengths."""
    by_row = magnitude.ndim == 1 or magnitude.shape[0] == weight.shape[0]
    axis = 0 if by_row else 1
    other = [n for n in range(weight.ndim) if n != axis]
    norm = weight.pow(2).sum(dim=other, keepdim=True).sqrt() + torch.finfo(weight.dtype).eps
    return weight * (_along(magnitude, weight, axis) / norm)


def _shaped(delta: Tensor, weight: Tensor) -> Tensor:
    """The difference in the weight's shape; matrices and 1×1 convolutions are the same."""
    if delta.shape[0] != weight.shape[0]:
        raise ValueError(f"{delta.shape[0]} rows for {weight.shape[0]}")
    return delta.reshape(weight.shape)
