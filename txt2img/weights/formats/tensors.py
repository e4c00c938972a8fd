"""Read tensors out of safetensors files: checked to be finite, and cast."""

import math
import os
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from txt2img.errors import BadFile, MissingWeights
from txt2img.system.files import open_regular, stat_key
from txt2img.system.text import shown
from txt2img.weights.formats.safetensors_file import FLOAT8, NAME_MAX, TensorRef, broken

FLOATS = ("F64", "F32", "F16", "BF16", *FLOAT8)
READERS = 4  # threads at most
THREADS_PAY = 2**22  # bytes in all, from which on it is worth starting threads


def read(
    refs: Mapping[str, TensorRef],
    device: torch.device,
    dtype: torch.dtype,
    keep_dtype: Set[str] = frozenset(),
) -> dict[str, Tensor]:
    """Read tensors as finite floats of `dtype` onto `device`, in the order of their files.

    Those named in `keep_dtype` stay in their stored dtype where it is the narrower one.

    Raises MissingWeights for integers and values that are not finite, BadFile for a changed file.
    """

    def one(item: tuple[str, TensorRef]) -> Tensor:
        name, ref = item
        return _finite_floats(name, ref, device, dtype, name in keep_dtype)

    rows = sorted(refs.items(), key=lambda item: (item[1].path, item[1].start, item[1].rows or ()))
    names = [name for name, _ in rows]
    try:
        return dict(zip(names, _map(one, rows), strict=True))
    finally:
        _open.cache_clear()  # closes the files


def _map(
    read_one: Callable[[tuple[str, TensorRef]], Tensor], rows: Sequence[tuple[str, TensorRef]]
) -> list[Tensor]:
    """Read each tensor, in several threads if there is enough to read."""
    threads = torch.get_num_threads()
    readers = min(READERS, threads, len(rows))
    if readers < 2 or sum(ref.nbytes for _, ref in rows) < THREADS_PAY:
        return [read_one(row) for row in rows]
    try:
        # One thread for each reader's casts: more would compete with the other readers for cores.
        with ThreadPoolExecutor(readers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(read_one, rows))
    finally:
        torch.set_num_threads(threads)  # the count that threads started later inherit


def read_stored(name: str, ref: TensorRef) -> Tensor:
    """Read one tensor in its stored dtype onto the CPU. Raises BadFile."""
    try:
        file = _open(ref.path, file_key(ref.path))
        value: Tensor = (
            file.get_tensor(ref.key)  # type: ignore[no-untyped-call]
            if ref.rows is None
            else file.get_slice(ref.key)[slice(*ref.rows)]  # type: ignore[no-untyped-call]
        )
    except (SafetensorError, OSError) as error:
        raise broken(ref.path, error) from error
    if value.numel() != math.prod(ref.shape):
        where = f"{ref.path.name}: {shown(name, NAME_MAX)}"
        raise BadFile(f"{where} was changed while it was in use; start again")
    if ref.transposed:
        return value.reshape(ref.shape[::-1]).T.contiguous()
    return value.reshape(ref.shape)


def file_key(path: Path) -> tuple[int, int, int]:
    """Size, time and inode of a file: another key is another file. Raises BadFile."""
    with open_regular(path) as file:
        return stat_key(os.fstat(file.fileno()))


@lru_cache(maxsize=8)
def _open(path: Path, key: tuple[int, int, int]) -> safe_open:
    """Open a file and parse its header, once for all its tensors.

    By `pread`: mapped pages count as memory, and kill the process if the file is cut short.
    """
    return safe_open(path, "pt", backend="pread")


def close_files() -> None:
    """Close the files that are open for more of their tensors."""
    _open.cache_clear()


def _finite_floats(
    name: str, ref: TensorRef, device: torch.device, dtype: torch.dtype, keep_dtype: bool
) -> Tensor:
    """Read one tensor as finite floats. Raises MissingWeights, BadFile."""
    where = f"{ref.path.name}: {shown(name, NAME_MAX)}"
    if ref.dtype not in FLOATS:
        raise MissingWeights(f"{where} holds {ref.dtype}; weights are floats")
    value = read_stored(name, ref)
    if value.dtype != torch.float64:  # which MPS has not
        value = value.to(device)
    if keep_dtype and ref.scale is None and value.dtype.itemsize < dtype.itemsize:
        dtype = value.dtype
    if ref.scale is not None:
        value = value.float() * read_stored(f"{name} scale", ref.scale).float().item()
    cast = value.to(dtype).to(device)
    if _is_finite(value if value.dtype.itemsize < dtype.itemsize else cast):
        return cast
    if _is_finite(value):
        raise MissingWeights(f"{where} is too large for {dtype}; use --dtype float32")
    raise MissingWeights(f"{where} holds values that are not finite (NaN or infinity)")


def _is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite: either shows in the least or the greatest one."""
    if not value.numel():
        return True
    low, high = torch.aminmax(value.float() if value.dtype.itemsize == 1 else value)
    return math.isfinite(low.item()) and math.isfinite(high.item())
