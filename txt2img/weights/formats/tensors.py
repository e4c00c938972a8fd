"""Tensors out of weight files: copied, checked to be finite, and cast.

They are read a piece at a time, so that a piece is checked and cast while it is still in the
processor's cache, and on a CPU by several threads: most of the time goes into the system's giving
out memory that was never used, which several threads can ask for at once.
"""

import math
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader

import numpy as np
import torch
from torch import Tensor

from txt2img.errors import BadFile, MissingWeights
from txt2img.system.files import ADVICE, open_regular
from txt2img.system.text import shown
from txt2img.weights.formats.dtypes import SIZES, torch_dtype
from txt2img.weights.formats.safetensors_file import NAME_MAX, Stored

PIECE = 2**18  # bytes
READERS = 4  # threads at most
THREADS_PAY = 2**22  # bytes in all, from which on it is worth starting threads
# The bits of infinity, or of NaN where a type has no infinity, without the sign. Greater ones are
# those of NaN.
NOT_FINITE = {
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
    if device.type != "cpu":  # one after the other, so that they are never all on the CPU too
        return {row[0]: one(row).to(device) for row in rows}  # cast first: MPS has no float64
    return dict(zip((name for name, _ in rows), _all(one, rows), strict=True))


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
    return _copied(name, stored, torch_dtype(stored.dtype))[0]


def _all(
    one: Callable[[tuple[str, Stored]], Tensor], rows: list[tuple[str, Stored]]
) -> list[Tensor]:
    """What `one` makes of each row, in their order. Each tensor is read by one of the threads."""
    threads = torch.get_num_threads()
    readers = min(READERS, threads, len(rows))
    if readers < 2 or sum(stored.size for _, stored in rows) < THREADS_PAY:
        return [one(row) for row in rows]
    try:
        # One thread for a reader's casts: they would compete with the other readers' for cores.
        with ThreadPoolExecutor(readers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(one, rows))
    finally:
        torch.set_num_threads(threads)  # the count that threads started later inherit


def _copied(name: str, stored: Stored, dtype: torch.dtype) -> tuple[Tensor, bool]:
    """A tensor as `dtype`, and whether all values in the file are finite. BadFile."""
    own = torch_dtype(stored.dtype)
    made, finite = torch.empty(stored.size // own.itemsize, dtype=dtype), True
    piece = torch.empty(0 if dtype == own else min(PIECE, stored.size), dtype=torch.uint8)
    with open_regular(stored.path) as file:
        file.seek(stored.start)
        for part in made.split(PIECE // own.itemsize):
            raw = part.view(torch.uint8) if dtype == own else piece[: len(part) * own.itemsize]
            fill(raw.numpy(), file, name, stored)
            finite = finite and _finite(raw.numpy(), stored.dtype)
            if dtype != own:
                part.copy_(raw.view(own))
    return shaped(made, stored), finite


def fill(piece: np.ndarray, file: BufferedReader, name: str, stored: Stored) -> None:
    """Read the file's next bytes into an array. Raises BadFile if the file shrank."""
    if file.readinto(piece.data) != len(piece):
        raise BadFile(f"{stored.path.name}: it ends within {shown(name, NAME_MAX)}; {ADVICE}")


def shaped(values: Tensor, stored: Stored) -> Tensor:
    """A tensor's values (N,) as the tensor that they are."""
    if stored.turned:
        return values.reshape(stored.shape[::-1]).T.contiguous()
    return values.reshape(stored.shape)


def _read(name: str, stored: Stored, dtype: torch.dtype) -> Tensor:
    """A tensor as finite floats of a type. MissingWeights, BadFile."""
    where = f"{stored.path.name}: {shown(name, NAME_MAX)}"
    if stored.dtype not in NOT_FINITE:
        raise MissingWeights(f"{where} holds {stored.dtype}; weights are floats")
    broken = MissingWeights(f"{where} holds values that are not finite (NaN or infinity)")
    own = torch_dtype(stored.dtype)
    if stored.scale is None and torch.finfo(dtype).max >= torch.finfo(own).max:
        value, finite = _copied(name, stored, dtype)
        if not finite:
            raise broken
        return value
    value, finite = _copied(name, stored, own)
    if stored.scale is not None:
        value = value.float() * tensor(f"{name} scale", stored.scale).float().reshape(())
    cast = value.to(dtype)
    if finite and _bounded(cast):
        return cast
    if finite and _bounded(value):
        raise MissingWeights(f"{where} is too large for {dtype}; use --dtype float32")
    raise broken


def _finite(piece: np.ndarray, dtype: str) -> bool:
    """Whether all floats whose bytes these are are finite; True if they are no floats, or none.

    Read as signed integers, a positive NaN or infinity is greater than every finite float; read
    as unsigned ones, a negative one is.
    """
    if dtype not in NOT_FINITE or not len(piece):
        return True
    size, least = SIZES[dtype], NOT_FINITE[dtype]
    positive, negative = piece.view(f"i{size}").max(), piece.view(f"u{size}").max()
    return bool(int(positive) < least and int(negative) < least + 2 ** (8 * size - 1))


def _bounded(value: Tensor) -> bool:
    """Whether no value of a tensor is NaN or infinite: both show in the least and the greatest."""
    if not value.numel():
        return True
    low, high = torch.aminmax(value.float() if value.dtype.itemsize == 1 else value)
    return math.isfinite(low.item()) and math.isfinite(high.item())
