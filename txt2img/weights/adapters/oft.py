"""Adapters that turn a weight's rows or columns instead of adding to it: orthogonal finetuning.

Qiu et al. 2023 (OFT) and Liu et al. 2024 (BOFT), as kohya, LyCORIS and peft store them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]  # an adapter's tensors for one layer, by role
TURNING = ("oft_blocks", "oft_r", "boft_r")
TINY = 1e-8
SERIES = 5  # peft's own number of terms


def turned(weight: Tensor, parts: Parts, bound: float | None, strength: float) -> Tensor:
    """The weight turned at a strength; float32 in and out, of the same shape.

    `bound` is the file's alpha: how far blocks may turn, for each of the weight's rows; of peft's,
    how many terms of a series there are. KeyError, ValueError or RuntimeError if parts do not fit.
    """
    unknown = set(parts) - {*TURNING, "rescale"}
    if unknown or ("oft_r" in parts and len(parts) > 1):
        raise ValueError(f"a turn beside {', '.join(sorted(parts))}")
    if "boft_r" in parts:
        return weight + strength * (
            _scaled(_of_pefts_boft(weight, parts["boft_r"]), parts) - weight
        )
    if "oft_r" in parts:
        return weight + strength * (_of_peft(weight, parts["oft_r"], bound) - weight)
    blocks = parts["oft_blocks"]
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError("blocks that are not square")
    turns = _cayley(_bounded(blocks - blocks.mT, (bound or 0.0) * len(weight)))
    if blocks.ndim == 4:
        made = _butterfly(weight, turns, strength)
        return made + strength * (_scaled(made, parts) - made)
    made = torch.einsum("knm,kn...->km...", turns, weight.unflatten(0, blocks.shape[:2]))
    return weight + strength * (_scaled(made.flatten(0, 1), parts) - weight)


def _bounded(skew: Tensor, bound: float) -> Tensor:
    """All blocks together no longer than the bound, if there is one."""
    if bound <= 0:
        return skew
    length: Tensor = torch.linalg.vector_norm(skew)
    return skew * torch.clamp(bound / (length + TINY), max=1)


def _cayley(skew: Tensor) -> Tensor:
    """(I + Q)(I − Q)⁻¹ of blocks (…, n, n): a rotation, for Q is skew."""
    one = torch.eye(skew.shape[-1], device=skew.device)
    inverse: Tensor = torch.linalg.inv(one - skew)
    return (one + skew) @ inverse


def _butterfly(weight: Tensor, turns: Tensor, strength: float) -> Tensor:
    """The rows turned in stages (m, k, b, b): stage i mixes rows 2^i · b/2 apart."""
    size = turns.shape[-1]
    one = torch.eye(size, device=turns.device)
    for stage, turn in enumerate(turns):
        apart = 2**stage * (size // 2)
        pairs = weight.unflatten(0, (-1, 2, apart)).transpose(1, 2)  # (groups, apart, 2, …)
        rows = pairs.flatten(0, 2).unflatten(0, (-1, size))
        rows = torch.einsum("kij,kj...->ki...", one + strength * (turn - one), rows)
        weight = rows.flatten(0, 1).unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
    return weight


def _scaled(weight: Tensor, parts: Parts) -> Tensor:
    """Each row times its own factor, where there are such."""
    if "rescale" not in parts:
        return weight
    return weight * parts["rescale"].reshape(-1, *[1] * (weight.ndim - 1))


def _of_peft(weight: Tensor, upper: Tensor, terms: float | None) -> Tensor:
    """The columns turned by blocks whose upper triangles are rows of `upper`; one row is for all.

    The rotation is a series of so many terms, or, where they are 0, (I − Q)(I + Q)⁻¹.
    """
    size = round((1 + (1 + 8 * upper.shape[1]) ** 0.5) / 2)
    if size * (size - 1) // 2 != upper.shape[1] or upper.ndim != 2:
        raise ValueError(f"{tuple(upper.shape)} is no list of triangles")
    rows, columns = torch.triu_indices(size, size, 1).to(upper.device)
    skew = torch.zeros(len(upper), size, size, device=upper.device)
    skew[:, rows, columns] = upper
    skew = skew - skew.mT
    count = SERIES if terms is None else int(terms)  # peft makes no difference between 3 and 4
    turns = _series(skew, 4 if count == 3 else count) if count else _cayley(-skew)
    flat = weight.flatten(1).unflatten(1, (-1, size))  # (out, blocks, size)
    made = torch.einsum("okj,kij->oki", flat, turns.expand(flat.shape[1], size, size))
    return made.flatten(1).reshape(weight.shape)


def _of_pefts_boft(weight: Tensor, blocks: Tensor) -> Tensor:
    """The columns turned by blocks (1, k, n, n), each (I − S)(I + S)⁻¹ of S = (A − Aᵀ) / 2."""
    if blocks.ndim != 4 or len(blocks) != 1 or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"{tuple(blocks.shape)} is no list of square blocks")
    turns = _cayley((blocks.mT - blocks)[0] / 2)
    flat = weight.flatten(1).unflatten(1, blocks.shape[1:3])  # (out, k, n)
    return torch.einsum("okj,kij->oki", flat, turns).flatten(1).reshape(weight.shape)


def _series(skew: Tensor, terms: int) -> Tensor:
    """The beginning of (I + Q)(I − Q)⁻¹ = I + 2Q + 2Q² + …, its last term once."""
    made = torch.eye(skew.shape[-1], device=skew.device).expand_as(skew)
    power = skew
    for term in range(1, terms):
        made = made + (power if term == terms - 1 and terms > 2 else 2 * power)
        power = power @ skew
    return made
