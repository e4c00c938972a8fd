"""Read tensors out of safetensors and GGUF files: dequantised, checked to be finite, and cast."""

import math
import os
from collections.abc import Callable, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from txt2img.errors import BadFile, MissingWeights
from txt2img.system.files import open_regular, stat_key
from txt2img.system.text import shown
from txt2img.weights.formats.quantized_layers import FLOAT8
from txt2img.weights.formats.safetensors_file import NAME_MAX, TensorRef, broken

FLOATS = ("F64", "F32", "F16", "BF16", *FLOAT8)
GGUF_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
DTYPES = GGUF_DTYPES | {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
PIECE = 2**22  # values that are cast at a time, where memory is short
READERS = 4  # threads at most
THREADS_PAY = 2**22  # bytes in all, from which on it is worth starting threads


class Files(dict[Path, safe_open]):
    """Open weight files by path, each parsed at its first use; closed with the last reference.

    By `pread`: mapped pages count as memory, and kill the process if the file is cut short.
    """

    def __missing__(self, path: Path) -> safe_open:
        open_regular(path).close()  # or a FIFO would block
        self[path] = safe_open(path, "pt", backend="pread")
        return self[path]


def read(
    refs: Mapping[str, TensorRef],
    device: torch.device,
    dtype: torch.dtype,
    keep_dtype: Set[str] = frozenset(),
    files: Files | None = None,
) -> dict[str, Tensor]:
    """Read tensors as finite floats of `dtype` onto `device`, in the order of their files.

    Those named in `keep_dtype` stay in their stored dtype where it is the narrower one; `files`
    are those that are open already. Raises MissingWeights for integers and values that are not
    finite, BadFile.
    """
    opened = Files() if files is None else files

    def one(item: tuple[str, TensorRef]) -> Tensor:
        name, ref = item
        value = read_stored(name, ref, opened)
        keeps = name in keep_dtype and ref.scale is None and value.dtype.itemsize < dtype.itemsize
        return _finite(name, ref, value, device, value.dtype if keeps else dtype)

    rows = sorted(refs.items(), key=lambda item: (item[1].path, item[1].start, item[1].rows or ()))
    names = [name for name, _ in rows]
    threads = torch.get_num_threads()
    readers = min(READERS, threads, len(rows))
    if readers < 2 or sum(ref.nbytes for _, ref in rows) < THREADS_PAY:
        return dict(zip(names, map(one, rows), strict=True))
    try:
        # One thread for each reader's casts: more would compete with the other readers for cores.
        with ThreadPoolExecutor(readers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return dict(zip(names, pool.map(one, rows), strict=True))
    finally:
        torch.set_num_threads(threads)  # the count that threads started later inherit


def read_into(
    name: str, ref: TensorRef, view: Tensor, checked: bool, files: Files | None = None
) -> None:
    """Read a tensor into a contiguous one of its shape in main memory, of any float dtype.

    What is stored so goes straight there, and what is cast in pieces, so that little memory is
    needed besides. Raises as `read`; what goes straight there is not looked at if `checked`.
    """
    if DTYPES.get(ref.dtype) == view.dtype and ref.scale is None and not ref.transposed:
        read_bytes(name, ref, view.view(-1).view(torch.uint8))
        if not (checked or _is_finite(view)):
            raise _not_finite(name, ref)
        return
    cpu = torch.device("cpu")
    if ref.transposed or ref.swapped or not ref.shape:
        view.copy_(read({name: ref}, cpu, view.dtype, {name}, files)[name])
        return
    count = max(1, PIECE // max(math.prod(ref.shape[1:]), 1))
    for first in range(0, ref.shape[0], count):
        part = view[first : first + count]
        piece = ref.take(first, len(part))
        part.copy_(read({name: piece}, cpu, view.dtype, files=files)[name])


def read_bytes(name: str, ref: TensorRef, view: Tensor) -> None:
    """Read a tensor's bytes, whose halves may be swapped, into (bytes,), uint8. Raises BadFile."""
    begin, end = ref.rows or (0, 1)
    start = ref.start + begin * len(view) // max(end - begin, 1)
    half = len(view) // 2 if ref.swapped else 0
    try:
        with open_regular(ref.path) as file:
            file.seek(start)
            counts = [file.readinto(part.numpy().data) for part in (view[half:], view[:half])]
    except OSError as error:
        raise broken(ref.path, error) from error
    if sum(counts) != len(view):
        raise _changed(name, ref)


def read_stored(name: str, ref: TensorRef, files: Files | None = None) -> Tensor:
    """Read one tensor in its stored dtype, or dequantised to float32, onto the CPU.

    Raises BadFile; Txt2imgError for a quantised one that needs a package that is missing.
    """
    if ref.block is not None:
        return _oriented(_read_gguf(name, ref), ref)
    if ref.scale is None:
        return _oriented(_read_rows(name, ref, files), ref)
    from txt2img.models.optimize.packed import rotated
    from txt2img.weights.formats.dequantize import dequantize_rows

    rows = _read_eight(name, ref, files)
    shape = ref.shape[::-1] if ref.transposed else ref.shape
    value = torch.empty(shape)
    dequantize_rows(rows, ref.dtype, True, value.view(len(rows), -1))
    return _oriented(rotated(value, ref.rotation) if ref.rotation else value, ref)


def _read_rows(name: str, ref: TensorRef, files: Files | None) -> Tensor:
    """The rows of a safetensors file that a tensor is, as they are stored. Raises BadFile."""
    if ref.rows is not None and ref.dtype in DTYPES:  # `get_slice` would read all rows
        some = torch.empty(math.prod(ref.shape), dtype=DTYPES[ref.dtype])
        read_bytes(name, replace(ref, swapped=False), some.view(torch.uint8))
        return some.view(ref.shape[::-1] if ref.transposed else ref.shape)
    try:
        file = (Files() if files is None else files)[ref.path]
        value: Tensor = (
            file.get_tensor(ref.key)  # type: ignore[no-untyped-call]
            if ref.rows is None
            else file.get_slice(ref.key)[slice(*ref.rows)]  # type: ignore[no-untyped-call]
        )
    except (SafetensorError, OSError) as error:
        raise broken(ref.path, error) from error
    if value.numel() != math.prod(ref.shape):
        raise _changed(name, ref)
    return value


def _read_eight(name: str, ref: TensorRef, files: Files | None = None) -> Tensor:
    """Rows of 8-bit numbers as bytes, each after its scale as a float32. Raises as `_read_rows`."""
    values = _read_rows(name, ref, files).view(torch.uint8)
    values = values.reshape(len(values), -1)
    if ref.scale is None:
        return values
    scale = _read_rows(f"{name} scale", ref.scale, files).float().reshape(-1, 1)
    if len(scale) > 1 and ref.rows is not None:
        scale = scale[slice(*ref.rows)]
    return torch.cat([scale.expand(len(values), 1).contiguous().view(torch.uint8), values], dim=1)


def read_blocks(name: str, ref: TensorRef) -> tuple[Tensor, int]:
    """The blocks (n, bytes) of a GGUF file that hold a tensor, uint8, and the values before it.

    Rows that a tensor is cut to need not begin with a block. Raises BadFile.
    """
    assert ref.block is not None
    values, nbytes = ref.block
    row = math.prod(ref.shape[:-1] if ref.transposed else ref.shape[1:])
    begin = row * (ref.rows or (0,))[0]
    first, end = begin // values, -(-(begin + math.prod(ref.shape)) // values)
    content = torch.empty((end - first) * nbytes, dtype=torch.uint8)
    try:
        with open_regular(ref.path) as file:
            file.seek(ref.start + first * nbytes)
            count = file.readinto(content.numpy().data)
    except OSError as error:
        raise broken(ref.path, error) from error
    if count != len(content):
        raise _changed(name, ref)
    return content.view(-1, nbytes), begin - first * values


def is_packable(ref: TensorRef) -> bool:
    """Whether a tensor is whole blocks of a type that torch unpacks, in their order.

    A row of 8-bit numbers is a block, too.
    """
    if ref.transposed or len(ref.shape) < 2:
        return False
    if ref.block is None:
        return ref.is_quantized or ref.is_float8
    if not ref.is_quantized:
        return False
    from txt2img.weights.formats.dequantize import KERNELS

    begin = math.prod(ref.shape[1:]) * (ref.rows or (0,))[0]
    part = math.prod(ref.shape) // (2 if ref.swapped else 1)  # that must be whole blocks
    is_whole = begin % ref.block[0] == 0 and part % ref.block[0] == 0
    return ref.dtype in KERNELS and is_whole


def block_shape(ref: TensorRef) -> tuple[int, int]:
    """The number of a packable tensor's blocks, and their bytes."""
    if ref.block is None:
        return ref.shape[0], math.prod(ref.shape[1:]) + (0 if ref.scale is None else 4)
    return math.prod(ref.shape) // ref.block[0], ref.block[1]


def unpack_of(ref: TensorRef) -> Callable[[Tensor, Tensor], None]:
    """What unpacks a packable tensor's blocks into (n, values); rotated ones stay so."""
    from txt2img.weights.formats.dequantize import dequantize_into, dequantize_rows

    kind, scaled = ref.dtype, ref.scale is not None
    if ref.block is None:
        return lambda rows, out: dequantize_rows(rows, kind, scaled, out)
    return lambda blocks, out: dequantize_into(blocks, kind, out)


def read_packed(refs: Mapping[str, TensorRef], device: torch.device) -> dict[str, Tensor]:
    """Read packable tensors as blocks (n, bytes), as int8. Raises MissingWeights, BadFile.

    Of integers only their scales are checked to be finite: numbers times scales then are, too.
    """
    from txt2img.weights.formats.dequantize import is_finite

    read, files = {}, Files()
    for name, ref in sorted(refs.items(), key=lambda item: (item[1].path, item[1].start)):
        whole = _read_eight(name, ref, files) if ref.block is None else read_blocks(name, ref)[0]
        blocks = whole.to(device)
        if not is_finite(blocks, ref.dtype, ref.scale is not None):
            raise _not_finite(name, ref)
        blocks = blocks.roll(len(blocks) // 2, 0) if ref.swapped else blocks
        read[name] = blocks.view(torch.int8)
    return read


def _read_gguf(name: str, ref: TensorRef) -> Tensor:
    """The values of a tensor of a GGUF file, in a row. Raises as `read_stored`."""
    assert ref.block is not None
    blocks, before = read_blocks(name, ref)
    if not ref.is_quantized:
        return blocks.view(GGUF_DTYPES[ref.dtype]).flatten()
    from txt2img.weights.formats.dequantize import dequantize

    flat = dequantize(blocks, ref.dtype, ref.block[0]).flatten()
    return flat[before : before + math.prod(ref.shape)]


def _changed(name: str, ref: TensorRef) -> BadFile:
    where = f"{ref.path.name}: {shown(name, NAME_MAX)}"
    return BadFile(f"{where} was changed while it was in use; start again")


def _oriented(value: Tensor, ref: TensorRef) -> Tensor:
    """Values of a tensor in its shape, transposed or with its halves swapped if it is to be."""
    if ref.transposed:
        return value.reshape(ref.shape[::-1]).T.contiguous()
    value = value.reshape(ref.shape)
    return value.roll(ref.shape[0] // 2, 0) if ref.swapped else value


def file_key(path: Path) -> tuple[int, int, int]:
    """Size, time and inode of a file: another key is another file. Raises BadFile."""
    with open_regular(path) as file:
        return stat_key(os.fstat(file.fileno()))


def _finite(
    name: str, ref: TensorRef, value: Tensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The value in a dtype and on a device. Raises MissingWeights unless it is finite floats."""
    where = f"{ref.path.name}: {shown(name, NAME_MAX)}"
    if ref.dtype not in FLOATS and not ref.is_quantized:
        raise MissingWeights(f"{where} contains {ref.dtype}; weights are floats")
    if value.dtype != torch.float64:  # which MPS has not
        value = value.to(device)
    cast = value.to(dtype).to(device)
    if _is_finite(value if value.dtype.itemsize < dtype.itemsize else cast):
        return cast
    if _is_finite(value):
        advice = "its values cannot be used" if dtype == torch.float32 else "use --dtype float32"
        raise MissingWeights(f"{where} is too large for {dtype}; {advice}")
    raise _not_finite(name, ref)


def _not_finite(name: str, ref: TensorRef) -> MissingWeights:
    where = f"{ref.path.name}: {shown(name, NAME_MAX)}"
    return MissingWeights(f"{where} contains values that are not finite (NaN or infinity)")


def _is_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite: either shows in the least or the greatest one."""
    if not value.numel():
        return True
    low, high = torch.aminmax(value.float() if value.dtype.itemsize == 1 else value)
    return math.isfinite(low.item()) and math.isfinite(high.item())
