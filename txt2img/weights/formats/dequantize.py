"""Dequantise ggml's blocks: the usual types by torch, on any device, all others by `gguf`.

Results are those of that package bit for bit. A block is a row of bytes: scales in float16, and
small integers that they multiply. Layouts: ggml-common.h of https://github.com/ggml-org/ggml
"""

from collections.abc import Callable

import torch
from torch import Tensor

from txt2img.errors import Txt2imgError, UnknownLayout

INSTALL = 'pip install "txt2img[gguf]"'
PIECE = 2**22  # values that are dequantised at a time, which bounds the memory besides


def dequantize(blocks: Tensor, kind: str) -> Tensor:
    """Dequantise blocks (n, bytes), uint8, of a type such as "Q4_K": (n, values), float32.

    Raises Txt2imgError for a type of the `gguf` package if that is missing; UnknownLayout.
    """
    unpack = KERNELS.get(kind)
    if unpack is None:
        return _by_package(blocks, kind)
    return unpack(blocks)


def dequantize_flat(blocks: Tensor, kind: str, values: int, dtype: torch.dtype) -> Tensor:
    """Dequantise blocks (n, bytes) of so many values, in pieces: (n · values,), in a dtype.

    Raises as `dequantize`.
    """
    flat = torch.empty(len(blocks) * values, dtype=dtype, device=blocks.device)
    rows = PIECE // values
    for part, into in zip(blocks.split(rows), flat.split(rows * values), strict=True):
        into.copy_(dequantize(part, kind).flatten())
    return flat


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 number at a byte of each block: (n, 1), float32."""
    return blocks[:, at : at + 2].view(torch.float16).float()


def _bits(packed: Tensor, width: int) -> Tensor:
    """Fields of `width` bits, lowest first: (n, groups, bytes) → (n, groups, 8 / width, bytes)."""
    by = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    fields: Tensor = (packed[:, :, None] >> by[:, None]) & ((1 << width) - 1)
    return fields


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """4-bit numbers of bytes (n, bytes): (n, 2 · bytes).

    Of each `group` of bytes, the low ones come first.
    """
    return _bits(packed.unflatten(-1, (-1, group)), 4).flatten(1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """The fifth bits of 32 numbers in 4 bytes: (n, 32), each 0 or 16."""
    by = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> by) & 1).flatten(1) << 4


def q8_0(blocks: Tensor) -> Tensor:
    """8 bits: a scale, 32 signed numbers."""
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def q4_0(blocks: Tensor) -> Tensor:
    """4 bits: a scale, 32 numbers less 8."""
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).float() - 8)


def q4_1(blocks: Tensor) -> Tensor:
    """4 bits: a scale, a minimum, 32 numbers."""
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16).float() + _half(blocks, 2)


def q5_0(blocks: Tensor) -> Tensor:
    """5 bits: a scale, 32 fifth bits, 32 numbers less 16."""
    numbers = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (numbers.float() - 16)


def q5_1(blocks: Tensor) -> Tensor:
    """5 bits: a scale, a minimum, 32 fifth bits, 32 numbers."""
    numbers = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * numbers.float() + _half(blocks, 2)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the 8 groups of a Q4_K or Q5_K block: (n, 8, 1) each.

    Bytes 4 to 15 hold 6 bits of each: scales, minima, and four bits of the last four of both.
    """
    low, mid, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], dim=-1)
    minima = torch.cat([mid & 63, (high >> 4) | ((mid >> 2) & 48)], dim=-1)
    return (
        (_half(blocks, 0) * scales.float())[:, :, None],
        (_half(blocks, 2) * minima.float())[:, :, None],
    )


def q4_k(blocks: Tensor) -> Tensor:
    """4 bits: 8 groups of 32 numbers, each with a scale and a minimum of 6 bits."""
    scale, minimum = _scales_and_minima(blocks)
    numbers: Tensor = _nibbles(blocks[:, 16:], 32).unflatten(-1, (8, 32))
    return (scale * numbers.float() - minimum).flatten(1)


def q5_k(blocks: Tensor) -> Tensor:
    """5 bits: as Q4_K, with fifth bits of the groups in the bits of 32 bytes."""
    scale, minimum = _scales_and_minima(blocks)
    fifth = _bits(blocks[:, None, 16:48], 1)[:, 0] << 4  # (n, 8, 32)
    numbers: Tensor = _nibbles(blocks[:, 48:], 32).unflatten(-1, (8, 32)) | fifth
    return (scale * numbers.float() - minimum).flatten(1)


def q6_k(blocks: Tensor) -> Tensor:
    """6 bits less 32: 16 groups of 16 numbers, each with a scale of 8 bits."""
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    low = _nibbles(blocks[:, :128], 64)
    high = _bits(blocks[:, 128:192].unflatten(-1, (2, 32)), 2).flatten(1)
    numbers: Tensor = ((low | (high << 4)).float() - 32).unflatten(-1, (16, 16))
    return (scale[:, :, None] * numbers).flatten(1)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": q8_0,
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
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


def dequantize_rows(rows: Tensor, kind: str, scaled: bool, dtype: torch.dtype) -> Tensor:
    """Dequantise rows (n, bytes) of 8-bit numbers of a type in EIGHT, each perhaps after its scale.

    (n, values), in a dtype. In pieces, as `dequantize_flat`.
    """
    values = (rows[:, 4:] if scaled else rows).view(EIGHT[kind])
    if not scaled:
        return values.to(dtype)
    out = torch.empty(values.shape, dtype=dtype, device=rows.device)
    count = max(1, PIECE // values.shape[1])
    parts = (part.split(count) for part in (values, _row_scales(rows), out))
    for numbers, scale, into in zip(*parts, strict=True):
        into.copy_(numbers.float() * scale)
    return out


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
