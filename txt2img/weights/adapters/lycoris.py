"""Merge an adapter into a weight: LoRA, LoHa, LoKr, GLoRA, IA3, full differences, and DoRA.

Hu et al. 2021 (LoRA), Hyeon-Woo et al. 2021 (FedPara, which LoHa is), Yeh et al. 2023 (LyCORIS:
LoHa, LoKr, the Tucker form of convolutions), Chavan et al. 2023 (GLoRA), Liu et al. 2022 (IA3),
Liu et al. 2024 (DoRA). Orthogonal finetuning is in oft.py.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from txt2img.weights.adapters import oft

Parts = Mapping[str, Tensor]  # an adapter's tensors for one layer, by role


def merged_weight(
    weight: Tensor,
    parts: Parts,
    alpha: float | None,
    strength: float,
    cut: Callable[[Tensor], Tensor] = lambda delta: delta,
) -> Tensor:
    """The weight with an adapter merged at a strength, in float32.

    `cut` gives the weight's rows of a difference that is of several layers. Raises KeyError,
    ValueError or RuntimeError if parts are missing or do not fit.
    """
    if any(role in parts for role in oft.ROTATION_ROLES):
        return oft.rotate(weight, parts, alpha, strength)
    delta = _reshaped(cut(_delta(weight, parts, alpha)), weight)
    if "dora" not in parts:
        return weight + strength * delta
    return weight + strength * (_dora(weight + delta, parts["dora"]) - weight)


def merged_bias(bias: Tensor, parts: Parts, strength: float) -> Tensor:
    """The bias with an adapter merged at a strength; as `merged_weight`."""
    name = "diff_b" if "diff_b" in parts else "b_norm"
    return bias + strength * _reshaped(parts[name], bias)


def changes_weight(roles: Mapping[str, object]) -> bool:
    """Whether parts of these roles change a layer's weight."""
    return bool(set(roles) - {"diff_b", "b_norm"})


def changes_bias(roles: Mapping[str, object]) -> bool:
    """Whether parts of these roles change a layer's bias."""
    return bool(set(roles) & {"diff_b", "b_norm"})


def surely_fits(weight: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> bool:
    """True if shapes alone prove that a LoRA fits; False means that the merge has to be tried.

    A trial on the meta device makes torch load its compiler, in 1.5 s and 170 MB.
    """
    if set(shapes) != {"down", "up"} or not all(shapes.values()):
        return False
    (rank, *rest), (out, *inner) = shapes["down"], shapes["up"]
    if not rank or (out, prod(inner)) != (weight[0], rank):
        return False
    return _without_1x1(rest) == _without_1x1(weight[1:])


def _without_1x1(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without a 1×1 kernel at its end."""
    return tuple(shape[:1] if prod(shape[1:]) == 1 else shape)


def _delta(weight: Tensor, parts: Parts, alpha: float | None) -> Tensor:
    """The difference that the adapter makes at strength 1."""
    if "up" in parts or "down" in parts:
        return _lora(parts) * _scale(alpha, parts["down"])
    if any(role.startswith("hada_") for role in parts):
        product = _low_rank(parts, "hada_w1", "hada_t1") * _low_rank(parts, "hada_w2", "hada_t2")
        return product * _scale(alpha, parts["hada_w1_b"])
    if any(role.startswith("lokr_") for role in parts):
        return _lokr(parts, alpha)
    if "a1" in parts:
        return _glora(weight, parts, alpha)
    if "on_output" in parts:
        return weight * _broadcast(parts["on_output"], weight, 0)
    if "on_input" in parts:
        return weight * _broadcast(parts["on_input"], weight, 1)
    return parts["diff"] if "diff" in parts else parts["w_norm"]


def _scale(alpha: float | None, down: Tensor) -> float:
    """alpha / rank, the rank being the number of rows of the down matrix."""
    if not len(down):
        raise ValueError("rank 0")
    return 1.0 if alpha is None else alpha / len(down)


def _lora(parts: Parts) -> Tensor:
    """up · down, or up · mid · down of a convolution."""
    up, down = parts["up"], parts["down"]
    if "mid" not in parts:
        return up.flatten(1) @ down.flatten(1)  # (out, in · kernel)
    return torch.einsum("oa,abkl,bi->oikl", up.flatten(1), parts["mid"], down.flatten(1))


def _lokr(parts: Parts, alpha: float | None) -> Tensor:
    """The Kronecker product of a small and a large matrix, each of which may be low-rank."""
    small = parts["lokr_w1"] if "lokr_w1" in parts else _low_rank(parts, "lokr_w1", "")
    large = parts["lokr_w2"] if "lokr_w2" in parts else _low_rank(parts, "lokr_w2", "lokr_t2")
    low = [parts[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in parts]
    scale = _scale(alpha, low[0]) if low else 1.0
    for _ in range(large.ndim - small.ndim):
        small = small.unsqueeze(-1)
    return scale * torch.kron(small, large.contiguous())  # kron needs contiguous strides


def _glora(weight: Tensor, parts: Parts, alpha: float | None) -> Tensor:
    """W · a1 · a2 + b1 · b2; early files have each pair the other way round."""
    a1, a2, b1, b2 = (parts[name].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    if b1.shape[0] != weight.shape[0]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    b = {"up": b1, "down": b2, **({"mid": parts["bm"]} if "bm" in parts else {})}
    product = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    return (product + _lora(b).reshape(weight.shape)) * _scale(alpha, a2)


def _low_rank(parts: Parts, name: str, core: str) -> Tensor:
    """a · b, or with a Tucker core t (j, r, kernel): Σ t[i, j] · b[j, …] · a[i, …]."""
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if core not in parts:
        return a @ b.flatten(1)
    return torch.einsum("ijkl,jr,ip->prkl", parts[core], b, a)


def _broadcast(values: Tensor, weight: Tensor, axis: int) -> Tensor:
    """One value for each row (axis 0) or column (axis 1), in a shape that broadcasts."""
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    return values.reshape(shape)


def _dora(weight: Tensor, magnitude: Tensor) -> Tensor:
    """The weight with the norms in `magnitude`, which has one for each row or column."""
    by_row = magnitude.ndim == 1 or magnitude.shape[0] == weight.shape[0]
    axis = 0 if by_row else 1
    other = [n for n in range(weight.ndim) if n != axis]
    norm = weight.pow(2).sum(dim=other, keepdim=True).sqrt() + torch.finfo(weight.dtype).eps
    return weight * (_broadcast(magnitude, weight, axis) / norm)


def _reshaped(delta: Tensor, weight: Tensor) -> Tensor:
    """The difference in the weight's shape: matrices and 1×1 convolutions are equivalent."""
    if delta.shape[0] != weight.shape[0]:
        raise ValueError(f"{delta.shape[0]} rows for {weight.shape[0]}")
    return delta.reshape(weight.shape)
