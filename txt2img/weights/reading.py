"""Tensors out of weight files: copied, looked through for what is not finite, and cast.

They are read a piece at a time, so that a piece is looked through while it is still near the
processor, and by several threads: the first use of so much memory takes longer than the file.
"""

import math
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader

import numpy as np
import torch
from torch import Tensor

from txt2img.disk import FETCH, open_regular
from txt2img.errors import BadFile, MissingWeights
from txt2img.escape import shown
from txt2img.weights.dtypes import SIZES, torch_dtype
from txt2img.weights.files import NAME_MAX, Stored

PIECE = 2**18  # bytes
READERS = 4  # threads at most
# The least bits, the sign left out, of a value that is not finite; all greater ones are not either.
ENDLESS = {
    "F64": 0x7FF << 52,
    "F32": 0xFF << 23,
    "F16": 0x1F << 10,
    "BF16": 0xFF << 7,
    "F8_E5M2": 0x1F << 2,
    "F8_E4M3": 0x7F,
}


def read(
    stored: Mapping[str, Stored],
    device: torch.device,
    dtype: torch.dtype,
    kept: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """The tensors as finite floats of `dtype` on `device`, read in the file's order.

    Those `kept` stay in the type that they are stored in, where it is the narrower one.

    Raises MissingWeights for integers and values that are not finite, BadFile if the file shrank.
    """

    def one(item: tuple[str, Stored]) -> Tensor:
        name, at = item
        return _read(name, at, kind(at, dtype, name in kept))

    rows = in_order(stored)
    return {name: value.to(device) for (name, _), value in zip(rows, _all(one, rows), strict=True)}


def in_order(stored: Mapping[str, Stored]) -> list[tuple[str, Stored]]:
    """Tensors with their names as they follow each other in their files."""
    return sorted(stored.items(), key=lambda item: (item[1].path, item[1].start))


def kind(stored: Stored, dtype: torch.dtype, kept: bool) -> torch.dtype:
    """The type that a tensor is to have: its own where it is `kept` and that is the narrower.

    One that is multiplied by a scale is not what is stored any more, and would not fit back.
    """
    own = torch_dtype(stored.dtype)
    narrow = own.itemsize < dtype.itemsize and stored.scale is None
    return own if kept and narrow else dtype


def tensor(name: str, stored: Stored) -> Tensor:
    """One tensor as it is stored, on the CPU. Raises BadFile if the file shrank."""
    return _copied(name, stored)[0]


def _all(
    one: Callable[[tuple[str, Stored]], Tensor], rows: list[tuple[str, Stored]]
) -> list[Tensor]:
    """What `one` makes of each row, by several threads: each does all of a tensor by itself."""
    threads = torch.get_num_threads()
    readers = min(READERS, threads, len(rows))
    if readers < 2:
        return [one(row) for row in rows]
    try:
        # A reader that shared its casts among more threads would wait for those of the others.
        with ThreadPoolExecutor(readers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(one, rows))
    finally:
        torch.set_num_threads(threads)  # what new threads begin with


def _copied(name: str, stored: Stored) -> tuple[Tensor, bool]:
    """A tensor as it is stored, and whether all its values are finite. BadFile."""
    buffer = torch.empty(stored.size, dtype=torch.uint8)
    content, finite = buffer.numpy(), True
    with open_regular(stored.path) as file:
        file.seek(stored.start)
        for start in range(0, stored.size, PIECE):
            piece = content[start : start + PIECE]
            _fill(piece, file, name, stored)
            finite = finite and _finite(piece, stored.dtype)
    values = buffer.view(torch_dtype(stored.dtype))
    if stored.turned:
        return values.reshape(stored.shape[::-1]).T.contiguous(), finite
    return values.reshape(stored.shape), finite


def _fill(piece: np.ndarray, file: BufferedReader, name: str, stored: Stored) -> None:
    if file.readinto(piece.data) != len(piece):
        raise BadFile(f"{stored.path.name}: it ends within {shown(name, NAME_MAX)}; {FETCH}")


def _read(name: str, stored: Stored, dtype: torch.dtype) -> Tensor:
    """A tensor as finite floats of a type. MissingWeights, BadFile."""
    where = f"{stored.path.name}: {shown(name, NAME_MAX)}"
    if stored.dtype not in ENDLESS:
        raise MissingWeights(f"{where} holds {stored.dtype}; weights are floats")
    value, finite = _copied(name, stored)
    if stored.scale is not None:
        value = value.float() * tensor(f"{name} scale", stored.scale).float().reshape(())
    cast = value.to(dtype)
    roomy = torch.finfo(dtype).max >= torch.finfo(torch_dtype(stored.dtype)).max
    if finite and ((roomy and stored.scale is None) or _bounded(cast)):
        return cast
    if finite and _bounded(value):
        raise MissingWeights(f"{where} is too large for {dtype}; use --dtype float32")
    raise MissingWeights(f"{where} holds values that are not finite (NaN or infinity)")


def _finite(piece: np.ndarray, dtype: str) -> bool:
    """Whether bytes hold finite floats only, or are no floats.

    As whole numbers with a sign the positive ones that are not finite are the greatest; without
    one, the negative ones.
    """
    if dtype not in ENDLESS:
        return True
    size, least = SIZES[dtype], ENDLESS[dtype]
    positive, negative = piece.view(f"i{size}").max(), piece.view(f"u{size}").max()
    return bool(int(positive) < least and int(negative) < least + 2 ** (8 * size - 1))


def _bounded(value: Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite: both show in the least and the greatest."""
    if not value.numel():
        return True
    low, high = torch.aminmax(value.float() if value.dtype.itemsize == 1 else value)
    return math.isfinite(low.item()) and math.isfinite(high.item())
