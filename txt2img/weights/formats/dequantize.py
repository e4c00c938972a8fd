"""Dequantise ggml's blocks: the usual types by torch, on any device, all others by `gguf`.

Results are those of that package bit for bit. A block is a row of bytes: scales in float16, and
small integers that they multiply. Layouts: ggml-common.h of https://github.com/ggml-org/ggml

Blocks are dequantised in tiles that stay in the cache, into memory that the caller has: fresh pages
take the system longer than the numbers.
"""

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from txt2img.errors import Txt2imgError, UnknownLayout

INSTALL = "pip install gguf"
PIECE = 2**22  # values that are dequantised at a time on a card, and looked at elsewhere
TILE = 2**20  # values that are dequantised at a time on a CPU

Scales = tuple[Tensor, Tensor | None]  # of each group (n, groups), and what is added to it


def dequantize(blocks: Tensor, kind: str, values: int) -> Tensor:
    """Dequantise blocks (n, bytes), uint8, of a type such as "Q4_K": (n, values), float32.

    Raises as `dequantize_into`.
    """
    out = torch.empty(len(blocks), values, device=blocks.device)
    dequantize_into(blocks, kind, out)
    return out


def dequantize_into(blocks: Tensor, kind: str, out: Tensor) -> None:
    """Dequantise blocks (n, bytes), uint8, into (n, values), contiguous, of any float dtype.

    Raises Txt2imgError for a type of the `gguf` package if that is missing; UnknownLayout.
    """
    layout = KERNELS.get(kind)
    for part, into in _tiles(blocks, out):
        if layout is None:
            into.copy_(_by_package(part, kind))
            continue
        numbers, scales = layout
        tile = into if into.dtype == torch.float32 else torch.empty_like(into, dtype=torch.float32)
        numbers(part, tile)
        scale, offset = scales(part)
        groups = tile.unflatten(-1, (scale.shape[1], -1))
        groups.mul_(scale[..., None])
        if offset is not None:
            groups.add_(offset[..., None])
        if tile is not into:
            into.copy_(tile)


def _tiles(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of some tensors, the last of which are values, that are dequantised at a time."""
    out = rows[-1]
    count = max(1, (TILE if out.device.type == "cpu" else PIECE) // out.shape[1])
    yield from zip(*(one.split(count) for one in rows), strict=True)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 number at a byte of each block: (n, 1), float32."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _scale(blocks: Tensor) -> Scales:
    return _half(blocks, 0), None


def _scale_and_minimum(blocks: Tensor) -> Scales:
    return _half(blocks, 0), _half(blocks, 2)


def _put_halves(low: Tensor, high: Tensor, group: int, out: Tensor) -> None:
    """Write small numbers (n, bytes): of each 2 · `group` of `out` the first are `low`."""
    pairs = out.unflatten(-1, (-1, 2, group))
    for index, numbers in enumerate((low, high)):
        pairs[:, :, index].copy_(numbers.unflatten(-1, (-1, group)))


def _less(numbers: Tensor, offset: int) -> Tensor:
    """Bytes less an offset, as signed ones."""
    return numbers.view(torch.int8).sub_(offset)


def q8_0(blocks: Tensor, out: Tensor) -> None:
    """8 bits: a scale, 32 signed numbers."""
    out.copy_(blocks[:, 2:].view(torch.int8))


def q4_0(blocks: Tensor, out: Tensor) -> None:
    """4 bits: a scale, 32 numbers less 8."""
    packed = blocks[:, 2:].contiguous()
    _put_halves(_less(packed & 15, 8), _less(packed >> 4, 8), 16, out)


def q4_1(blocks: Tensor, out: Tensor) -> None:
    """4 bits: a scale, a minimum, 32 numbers."""
    packed = blocks[:, 4:].contiguous()
    _put_halves(packed & 15, packed >> 4, 16, out)


@cache
def _fifth_bits_of(device: torch.device) -> Tensor:
    """The fifth bits of 8 numbers, each 0 or 16 in a byte, by the byte that packs them: (256,)."""
    by = torch.arange(8, dtype=torch.uint8)
    bits = ((torch.arange(256, dtype=torch.uint8)[:, None] >> by) & 1) << 4
    return bits.view(torch.int64).flatten().to(device)


def _five_bits(blocks: Tensor, at: int, out: Tensor, offset: int) -> None:
    """4 bytes of fifth bits from a byte on, then 32 numbers, less an offset."""
    packed = blocks[:, at + 4 :].contiguous()
    fifth = _fifth_bits_of(blocks.device).take(blocks[:, at : at + 4].long()).view(torch.uint8)
    low, high = (packed & 15) | fifth[:, :16], (packed >> 4) | fifth[:, 16:]
    _put_halves(_less(low, offset), _less(high, offset), 16, out)


def q5_0(blocks: Tensor, out: Tensor) -> None:
    """5 bits: a scale, 32 fifth bits, 32 numbers less 16."""
    _five_bits(blocks, 2, out, 16)


def q5_1(blocks: Tensor, out: Tensor) -> None:
    """5 bits: a scale, a minimum, 32 fifth bits, 32 numbers."""
    _five_bits(blocks, 4, out, 0)


def _k_scales(blocks: Tensor) -> Scales:
    """Scales and negated minima of the 8 groups of a Q4_K or Q5_K block.

    Bytes 4 to 15 hold 6 bits of each: scales, minima, and four bits of the last four of both.
    """
    low, mid, high = blocks[:, 4:16].contiguous().unflatten(-1, (3, 4)).unbind(1)
    scales = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=-1)
    minima = torch.cat([mid & 63, (high >> 4) | ((mid >> 2) & 48)], dim=-1)
    return _half(blocks, 0) * scales, -_half(blocks, 2) * minima


def q4_k(blocks: Tensor, out: Tensor) -> None:
    """4 bits: 8 groups of 32 numbers, each with a scale and a minimum of 6 bits."""
    packed = blocks[:, 16:].contiguous()
    _put_halves(packed & 15, packed >> 4, 32, out)


def q5_k(blocks: Tensor, out: Tensor) -> None:
    """5 bits: as Q4_K, with fifth bits of the groups in the bits of 32 bytes."""
    packed, fifth = blocks[:, 48:].contiguous(), blocks[:, 16:48].contiguous()
    bits = [((fifth >> group) & 1) << 4 for group in range(8)]
    low = (packed & 15) | torch.cat(bits[::2], dim=1)
    high = (packed >> 4) | torch.cat(bits[1::2], dim=1)
    _put_halves(low, high, 32, out)


def _q6_k_scales(blocks: Tensor) -> Scales:
    return _half(blocks, 208) * blocks[:, 192:208].view(torch.int8), None


def q6_k(blocks: Tensor, out: Tensor) -> None:
    """6 bits less 32: 16 groups of 16 numbers, each with a scale of 8 bits."""
    packed = blocks[:, :128].contiguous()
    more = blocks[:, 128:192].contiguous()
    high = [(part & 48).unflatten(-1, (2, 32)) for part in (more << 4, more << 2, more, more >> 2)]
    first = (packed & 15) | torch.stack(high[:2], dim=2).flatten(1)
    second = (packed >> 4) | torch.stack(high[2:], dim=2).flatten(1)
    _put_halves(_less(first, 32), _less(second, 32), 64, out)


# By type: what writes a block's numbers, and its scales, which multiply them group by group.
KERNELS: dict[str, tuple[Callable[[Tensor, Tensor], None], Callable[[Tensor], Scales]]] = {
    "Q8_0": (q8_0, _scale),
    "Q4_0": (q4_0, _scale),
    "Q4_1": (q4_1, _scale_and_minimum),
    "Q5_0": (q5_0, _scale),
    "Q5_1": (q5_1, _scale_and_minimum),
    "Q4_K": (q4_k, _k_scales),
    "Q5_K": (q5_k, _k_scales),
    "Q6_K": (q6_k, _q6_k_scales),
}


# The bytes of a block at which its float16 scales begin.
SCALES = {
    **dict.fromkeys(("Q8_0", "Q4_0", "Q5_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q6_K": (208,),
}


# Signs of 8-bit floats that are NaN or infinite: bits without the sign, from which on they are.
NOT_FINITE = {"F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
EIGHT = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8}


def is_finite(blocks: Tensor, kind: str, scaled: bool) -> bool:
    """Whether nothing is NaN or infinite in blocks of a type in KERNELS, or rows of EIGHT."""
    if kind in SCALES:
        return all(bool(_half(blocks, at).isfinite().all()) for at in SCALES[kind])
    scales = bool(_row_scales(blocks).isfinite().all()) if scaled else True
    if kind not in NOT_FINITE:
        return scales
    values = blocks[:, 4:] if scaled else blocks
    return scales and all(
        int((part & 0x7F).max()) < NOT_FINITE[kind]
        for part in values.split(max(1, PIECE // values.shape[1]))
    )


def _row_scales(rows: Tensor) -> Tensor:
    """The scales that rows of bytes begin with: (n, 1), float32."""
    return rows[:, :4].contiguous().view(torch.float32)


def dequantize_rows(rows: Tensor, kind: str, scaled: bool, out: Tensor) -> None:
    """Dequantise rows (n, bytes) of 8-bit numbers of a type in EIGHT, each perhaps after its scale.

    Into (n, values), contiguous, of any float dtype.
    """
    for part, into in _tiles(rows, out):
        is_wide = into.dtype == torch.float32 or not scaled
        tile = into if is_wide else torch.empty_like(into, dtype=torch.float32)
        numbers = part[:, 4:] if scaled else part
        if kind == "F8_E4M3" and part.device.type == "cpu":  # thrice as fast as a cast
            tile.copy_(_floats_of(kind).take(numbers.long()))
        else:
            tile.copy_(numbers.view(EIGHT[kind]))
        if scaled:
            tile.mul_(_row_scales(part))
        if tile is not into:
            into.copy_(tile)


@cache
def _floats_of(kind: str) -> Tensor:
    """All 8-bit floats by their bits: (256,), float32."""
    return torch.arange(256, dtype=torch.uint8).view(EIGHT[kind]).float()


def _by_package(blocks: Tensor, kind: str) -> Tensor:
    """Dequantise by the `gguf` package, on the CPU. Raises as `dequantize`."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError as error:
        raise Txt2imgError(
            f"weights of the type {kind} need the gguf package, which is not installed: {INSTALL}"
        ) from error
    try:
        values = quants.dequantize(blocks.cpu().numpy(), GGMLQuantizationType[kind])
    except NotImplementedError as error:
        raise UnknownLayout(
            f"weights of the type {kind} cannot be read; use a version in Q8_0 or Q4_K"
        ) from error
    return torch.from_numpy(values).to(blocks.device)
