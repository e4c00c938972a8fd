"""Write weight files tensor by tensor, so that memory holds no more than one of them.

safetensors' own writer takes all tensors at once. GGUF files are written by the `gguf` package.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from txt2img.errors import Txt2imgError
from txt2img.weights.formats.dequantize import INSTALL
from txt2img.weights.formats.gguf import ORIGINAL_SHAPE, TYPES

BLOCKS = {name: (values, nbytes) for name, values, nbytes in TYPES.values()}
PADDING = 8  # safetensors' data begin at a multiple of it


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written: `dtype` as its file format calls it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def write_safetensors(
    path: Path,
    tensors: Sequence[PlannedTensor],
    contents: Iterable[Tensor],
    metadata: Mapping[str, str],
) -> Iterator[int]:
    """Write planned tensors, whose contents come in the same order; yields bytes. OSError."""
    rows: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for one in tensors:
        offsets = [end, end := end + one.nbytes]
        rows[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": offsets}
    header = json.dumps(rows, separators=(",", ":")).encode()
    header += b" " * (-len(header) % PADDING)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for one, content in zip(tensors, contents, strict=True):
            data = _bytes(content)
            assert data.nbytes == one.nbytes, one.name
            file.write(data.numpy().data)
            yield data.nbytes


def write_gguf(
    path: Path,
    tensors: Sequence[PlannedTensor],
    contents: Iterable[Tensor],
    metadata: Mapping[str, str],
    architecture: str,
) -> Iterator[int]:
    """Write planned tensors, whose contents come in the same order; yields bytes. OSError.

    One whose rows are no whole blocks is written in rows of a block, with its shape beside it, as
    ComfyUI-GGUF reads it. Raises Txt2imgError without the package.
    """
    try:
        from gguf import GGMLQuantizationType, GGUFWriter
    except ImportError as error:
        raise Txt2imgError(
            f"GGUF files are written by the gguf package, which is not installed: {INSTALL}"
        ) from error
    writer = GGUFWriter(path, architecture)
    writer.add_quantization_version(2)
    for key, value in metadata.items():
        writer.add_string(key, value)
    for one in tensors:
        values, nbytes = BLOCKS[one.dtype]
        shape = one.shape
        if shape and shape[-1] % values:
            writer.add_array(f"{ORIGINAL_SHAPE}{one.name}", list(shape))
            shape = (prod(shape) // values, values)
        stored = (*shape[:-1], shape[-1] // values * nbytes) if shape else (nbytes,)
        kind = GGMLQuantizationType[one.dtype]
        writer.add_tensor_info(one.name, stored, _BYTE, one.nbytes, kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for content in contents:
            writer.write_tensor_data(_bytes(content).numpy())
            yield content.nbytes
    finally:
        writer.close()


def _bytes(content: Tensor) -> Tensor:
    """A tensor's bytes in a row."""
    return content.contiguous().flatten().view(torch.uint8)


_BYTE = torch.empty(0, dtype=torch.uint8).numpy().dtype
