"""Orthogonal finetuning: adapters that rotate a weight's rows or columns.

OFT (Qiu et al. 2023) and BOFT (Liu et al. 2024), as kohya, LyCORIS and peft store them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]  # an adapter's tensors for one layer, by role
ROTATION_ROLES = ("oft_blocks", "oft_r", "boft_r")
EPS = 1e-8
PEFT_TERMS = 5  # of the Cayley-Neumann series, by peft's default


def rotate(weight: Tensor, parts: Parts, alpha: float | None, strength: float) -> Tensor:
    """Rotate a weight at a strength, in float32.

    `alpha` bounds the norm of the blocks, in units of the weight's rows; for peft's OFT it is the
    number of terms of the series. Raises KeyError, ValueError or RuntimeError if parts do not fit.
    """
    unknown = set(parts) - {*ROTATION_ROLES, "rescale"}
    if unknown or ("oft_r" in parts and len(parts) > 1):
        raise ValueError(f"a rotation with {', '.join(sorted(parts))}")
    if "boft_r" in parts:
        return weight + strength * (_rescale(_peft_boft(weight, parts["boft_r"]), parts) - weight)
    if "oft_r" in parts:
        return weight + strength * (_peft_oft(weight, parts["oft_r"], alpha) - weight)
    blocks = parts["oft_blocks"]
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError("blocks that are not square")
    rotations = _cayley(_constrain(blocks - blocks.mT, (alpha or 0.0) * len(weight)))
    if blocks.ndim == 4:
        result = _butterfly(weight, rotations, strength)
        return result + strength * (_rescale(result, parts) - result)
    result = torch.einsum("knm,kn...->km...", rotations, weight.unflatten(0, blocks.shape[:2]))
    return weight + strength * (_rescale(result.flatten(0, 1), parts) - weight)


def _constrain(skew: Tensor, bound: float) -> Tensor:
    """Scale all blocks down to a norm of at most `bound`, unless that is 0."""
    if bound <= 0:
        return skew
    norm: Tensor = torch.linalg.vector_norm(skew)
    return skew * torch.clamp(bound / (norm + EPS), max=1)


def _cayley(skew: Tensor) -> Tensor:
    """The Cayley transform (I + Q)(I − Q)⁻¹ of skew-symmetric blocks (…, n, n): rotations."""
    one = torch.eye(skew.shape[-1], device=skew.device)
    inverse: Tensor = torch.linalg.inv(one - skew)
    return (one + skew) @ inverse


def _butterfly(weight: Tensor, rotations: Tensor, strength: float) -> Tensor:
    """Rotate rows in stages (m, k, b, b), of which stage i mixes rows 2^i · b/2 apart."""
    size = rotations.shape[-1]
    one = torch.eye(size, device=rotations.device)
    for stage, rotation in enumerate(rotations):
        apart = 2**stage * (size // 2)
        pairs = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2)  # (groups, apart, 2, …)
        rows = pairs.flatten(0, 2).unflatten(0, (-1, size))
        rows = torch.einsum("kij,kj...->ki...", one + strength * (rotation - one), rows)
        weight = rows.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def _rescale(weight: Tensor, parts: Parts) -> Tensor:
    """Multiply each row by its own scale, if there are any."""
    if "rescale" not in parts:
        return weight
    return weight * parts["rescale"].reshape(-1, *[1] * (weight.ndim - 1))


def _peft_oft(weight: Tensor, upper: Tensor, terms: float | None) -> Tensor:
    """peft's OFT: rotate columns by blocks, given as upper triangles, one for all or one each.

    Rotations are a series of so many terms, or for 0 terms the exact (I − Q)(I + Q)⁻¹.
    """
    size = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
    if size * (size - 1) // 2 != upper.shape[1] or upper.ndim != 2:
        raise ValueError(f"{tuple(upper.shape)} is no list of triangles")
    rows, columns = torch.triu_indices(size, size, 1).to(upper.device)
    skew = torch.zeros(len(upper), size, size, device=upper.device)
    skew[:, rows, columns] = upper
    skew = skew - skew.mT
    count = PEFT_TERMS if terms is None else int(terms)
    # In peft 3 terms are the same as 4.
    rotations = _cayley_neumann(skew, 4 if count == 3 else count) if count else _cayley(-skew)
    flat = weight.flatten(1).unflatten(1, (-1, size))  # (out, blocks, size)
    result = torch.einsum("okj,kij->oki", flat, rotations.expand(flat.shape[1], size, size))
    return result.flatten(1).reshape(weight.shape)


def _peft_boft(weight: Tensor, blocks: Tensor) -> Tensor:
    """peft's BOFT: rotate columns by blocks (1, k, n, n), (I − S)(I + S)⁻¹ of S = (A − Aᵀ) / 2."""
    if blocks.ndim != 4 or len(blocks) != 1 or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"{tuple(blocks.shape)} is no list of square blocks")
    rotations = _cayley((blocks.mT - blocks)[0] / 2)
    flat = weight.flatten(1).unflatten(1, blocks.shape[1:3])  # (out, k, n)
    return torch.einsum("okj,kij->oki", flat, rotations).flatten(1).reshape(weight.shape)


def _cayley_neumann(skew: Tensor, terms: int) -> Tensor:
    """The Cayley transform's series I + 2Q + 2Q² + …, cut off, with its last term halved."""
    result = torch.eye(skew.shape[-1], device=skew.device).expand_as(skew)
    power = skew
    for term in range(1, terms):
        result = result + (power if term == terms - 1 and terms > 2 else 2 * power)
        power = power @ skew
    return result
