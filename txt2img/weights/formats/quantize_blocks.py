"""Quantise values into ggml's blocks, which weights/formats/dequantize.py reads.

Q8_0 to Q5_1 are those of ggml's reference code, bit for bit as the `gguf` package has it. For the
K types, which that package does not write, each group's scale is the best of some candidates by
weighted least squares, as in ggml-quants.c of https://github.com/ggml-org/ggml
"""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE = 2**18  # values that are quantised at a time, which stay in the cache


def quantize(values: Tensor, kind: str) -> Tensor:
    """Quantise a row of values in float32, whole blocks of a type such as "Q4_K": (n, bytes)."""
    size, encode = ENCODERS[kind]
    return torch.cat([encode(part.view(-1, size)) for part in values.split(PIECE)])


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _half(values: Tensor) -> Tensor:
    """Numbers (n, k) as float16, in bytes: (n, 2k)."""
    return values.to(torch.float16).contiguous().view(torch.uint8)


def _stored(values: Tensor) -> Tensor:
    """Numbers as they are once stored in float16."""
    return values.to(torch.float16).float()


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.to(torch.uint8)


def _nibbles(numbers: Tensor, group: int) -> Tensor:
    """4-bit numbers (n, 2 · bytes) in bytes, of each 2 · `group` the first ones low: (n, bytes)."""
    low, high = numbers.unflatten(-1, (-1, 2, group)).unbind(2)
    packed: Tensor = (low | (high << 4)).flatten(1)
    return packed


def _fifth_bits(numbers: Tensor) -> Tensor:
    """The fifth bits of 32 numbers (n, 32) in 4 bytes."""
    by = torch.arange(8, dtype=torch.uint8, device=numbers.device)
    bits = (numbers >> 4).unflatten(-1, (4, 8)) << by
    return _bytes(bits.sum(-1))


def _rounded(x: Tensor) -> Tensor:
    """x rounded, halves away from 0, as C rounds."""
    whole = x.abs().floor()
    return x.sign() * (whole + (2 * (x.abs() - whole)).floor())


def q8_0(x: Tensor) -> Tensor:
    """8 bits: a scale, 32 signed numbers."""
    scale = x.abs().amax(1, keepdim=True) / 127
    numbers = _rounded(x * _inverse(scale)).to(torch.int8)
    return torch.cat([_half(scale), numbers.view(torch.uint8)], dim=1)


def _symmetric(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Scales by the value farthest from 0, and numbers from 0 to 2 · half - 1."""
    most = x.gather(1, x.abs().argmax(1, keepdim=True))
    scale = most / -half
    numbers = (x * _inverse(scale) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
    return scale, _bytes(numbers)


def _with_minimum(x: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scales, minima, and numbers from 0 to `most`."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = (high - low) / most
    numbers = ((x - low) * _inverse(scale) + 0.5).trunc().clamp(0, most)
    return scale, low, _bytes(numbers)


def q4_0(x: Tensor) -> Tensor:
    """4 bits: a scale, 32 numbers."""
    scale, numbers = _symmetric(x, 8)
    return torch.cat([_half(scale), _nibbles(numbers, 16)], dim=1)


def q4_1(x: Tensor) -> Tensor:
    """4 bits: a scale, a minimum, 32 numbers."""
    scale, low, numbers = _with_minimum(x, 15)
    return torch.cat([_half(scale), _half(low), _nibbles(numbers, 16)], dim=1)


def q5_0(x: Tensor) -> Tensor:
    """5 bits: a scale, 32 fifth bits, 32 numbers."""
    scale, numbers = _symmetric(x, 16)
    return torch.cat([_half(scale), _fifth_bits(numbers), _nibbles(numbers & 15, 16)], dim=1)


def q5_1(x: Tensor) -> Tensor:
    """5 bits: a scale, a minimum, 32 fifth bits, 32 numbers."""
    scale, low, numbers = _with_minimum(x, 31)
    parts = _half(scale), _half(low), _fifth_bits(numbers), _nibbles(numbers & 15, 16)
    return torch.cat(parts, dim=1)


def _best_with_minimum(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The best scales and minima, below 0 and negated, of groups (n, groups, 32): (n, groups, 1).

    Each candidate's numbers are fitted by least squares, values far from 0 counting more. Errors
    follow from the fit's own sums.
    """
    weight = x.square().mean(-1, keepdim=True).sqrt() + x.abs()
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True)
    span, above = high - low, x - low
    total, first = weight.sum(-1, keepdim=True), (weight * x).sum(-1, keepdim=True)
    scale, least = span / most, low
    best = torch.full_like(span, torch.inf)
    numbers, weighted, product = (torch.empty_like(x) for _ in range(3))
    for stretch in (0.0, -0.9, -0.7, -0.5, -0.3, -0.1, 0.1, 0.3, 0.5, 0.8):
        torch.mul(above, _inverse(span / (most + stretch)), out=numbers)
        torch.mul(weight, numbers.round_().clamp_(0, most), out=weighted)
        one = weighted.sum(-1, keepdim=True)
        two = torch.mul(weighted, numbers, out=product).sum(-1, keepdim=True)
        mixed = torch.mul(weighted, x, out=product).sum(-1, keepdim=True)
        fitted = total * two - one * one
        inverse, is_fit = _inverse(fitted), fitted > 0
        slope = torch.where(is_fit, (total * mixed - first * one) * inverse, span / most)
        offset = torch.where(is_fit, (two * first - one * mixed) * inverse, low)
        slope = torch.where(offset > 0, mixed * _inverse(two), slope)
        offset = offset.clamp(max=0)
        # less the sum of weighted squares, which is the same for all
        error = slope * (slope * two + 2 * (offset * one - mixed))
        error += offset * (offset * total - 2 * first)
        better = (error < best) & (slope >= 0)
        best, scale = torch.where(better, error, best), torch.where(better, slope, scale)
        least = torch.where(better, offset, least)
    return scale, -least


def _scales_and_minima(scales: Tensor, minima: Tensor) -> Tensor:
    """6 bits each of 8 scales and 8 minima (n, 8) in 12 bytes."""
    parts = (
        (scales[:, :4] & 63) | ((scales[:, 4:] >> 4) << 6),
        (minima[:, :4] & 63) | ((minima[:, 4:] >> 4) << 6),
        (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4),
    )
    return torch.cat(parts, dim=1)


def _k_with_minima(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The first 16 bytes of Q4_K's or Q5_K's blocks, and numbers (n, 8, 32) from 0 to `most`."""
    groups = x.unflatten(-1, (8, 32))
    scale, minimum = (part[..., 0] for part in _best_with_minimum(groups, most))
    whole = scale.amax(1, keepdim=True) / 63
    below = minimum.amax(1, keepdim=True) / 63
    scales = (scale * _inverse(whole)).round().clamp(0, 63)
    minima = (minimum * _inverse(below)).round().clamp(0, 63)
    step = (_stored(whole) * scales)[..., None]
    numbers = ((groups + (_stored(below) * minima)[..., None]) * _inverse(step)).round()
    head = _half(whole), _half(below), _scales_and_minima(_bytes(scales), _bytes(minima))
    return torch.cat(head, dim=1), _bytes(numbers.clamp(0, most))


def q4_k(x: Tensor) -> Tensor:
    """4 bits: 8 groups of 32 numbers, each with a scale and a minimum of 6 bits."""
    head, numbers = _k_with_minima(x, 15)
    return torch.cat([head, _nibbles(numbers.flatten(1), 32)], dim=1)


def q5_k(x: Tensor) -> Tensor:
    """5 bits: as Q4_K, with fifth bits of the groups in the bits of 32 bytes."""
    head, numbers = _k_with_minima(x, 31)
    by = torch.arange(8, dtype=torch.uint8, device=x.device)[:, None]
    fifth = _bytes(((numbers >> 4) << by).sum(1))
    return torch.cat([head, fifth, _nibbles((numbers & 15).flatten(1), 32)], dim=1)


def q6_k(x: Tensor) -> Tensor:
    """6 bits less 32: 16 groups of 16 numbers, each with a scale of 8 bits."""
    groups = x.unflatten(-1, (16, 16))
    most = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    weight = groups.square()
    cubes = weight * groups
    scale, best = most / -32, torch.full_like(most, -1.0)
    numbers, product = torch.empty_like(groups), torch.empty_like(groups)
    for stretch in range(-9, 10):
        torch.mul(groups, _inverse(most / -(32 + 0.1 * stretch)), out=numbers)
        numbers.round_().clamp_(-32, 31)
        mixed = torch.mul(cubes, numbers, out=product).sum(-1, keepdim=True)
        two = torch.mul(weight, numbers.square_(), out=product).sum(-1, keepdim=True)
        inverse = _inverse(two)
        gain = mixed.square() * inverse
        better = gain > best
        best = torch.where(better, gain, best)
        scale = torch.where(better, mixed * inverse, scale)
    scale = scale[..., 0]
    whole = scale.gather(1, scale.abs().argmax(1, keepdim=True)) / -128
    scales = (scale * _inverse(whole)).round().clamp(-128, 127)
    step = (_stored(whole) * scales)[..., None]
    numbers = _bytes((groups * _inverse(step)).round().clamp(-32, 31) + 32).flatten(1)
    by = 2 * torch.arange(4, dtype=torch.uint8, device=x.device)[:, None]
    high = _bytes(((numbers >> 4).unflatten(-1, (2, 4, 32)) << by).sum(2)).flatten(1)
    parts = _nibbles(numbers & 15, 64), high, scales.to(torch.int8).view(torch.uint8), _half(whole)
    return torch.cat(parts, dim=1)


# By type: values of a block, and what makes blocks (n, bytes) of values (n, values).
ENCODERS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "Q8_0": (32, q8_0),
    "Q4_0": (32, q4_0),
    "Q4_1": (32, q4_1),
    "Q5_0": (32, q5_0),
    "Q5_1": (32, q5_1),
    "Q4_K": (256, q4_k),
    "Q5_K": (256, q5_k),
    "Q6_K": (256, q6_k),
}
