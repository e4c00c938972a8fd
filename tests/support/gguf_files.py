"""GGUF files by the gguf package's own writer, and what their weights are once dequantised."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from torch import Tensor

# Types that the package cannot quantise to, with where a block has its float16 scales.
UNPACK_ONLY = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def blocks(value: Tensor, kind: str) -> np.ndarray:
    """A tensor in rows of blocks, as bytes; random blocks of its size and scale in UNPACK_ONLY."""
    rows = value.reshape(-1, value.shape[-1]).float()
    if kind in FLOATS:
        return rows.to(FLOATS[kind]).contiguous().view(torch.uint8).numpy()
    if kind not in UNPACK_ONLY:
        return quants.quantize(rows.numpy(), GGMLQuantizationType[kind])
    values, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    generator = np.random.default_rng(value.numel())
    made = generator.integers(0, 256, (rows.numel() // values, nbytes), dtype=np.uint8)
    for at in UNPACK_ONLY[kind]:
        scale = np.float16(float(rows.std()) / 512 * (1 + generator.random()))
        made[:, at : at + 2] = np.frombuffer(scale.tobytes(), np.uint8)
    return made.reshape(len(rows), -1)


def dequantized(content: np.ndarray, kind: str) -> Tensor:
    """Rows of blocks as the package dequantises them."""
    if kind in FLOATS:
        return torch.from_numpy(content.copy()).view(FLOATS[kind]).float()
    return torch.from_numpy(quants.dequantize(content, GGMLQuantizationType[kind]))


def write(
    path: Path, tensors: Mapping[str, Tensor], kinds: Mapping[str, str], arch: str = "flux"
) -> dict[str, Tensor]:
    """Write tensors in types by name, F32 where there is none. Returns the dequantised ones.

    One whose rows are no whole blocks is written in rows of one block, with city96's orig_shape.
    """
    writer = GGUFWriter(path, arch)
    writer.add_quantization_version(2)
    read = {}
    for name, value in tensors.items():
        kind = kinds.get(name, "F32")
        values, _ = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        stored = value.detach()
        if stored.ndim and stored.shape[-1] % values:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(value.shape))
            stored = stored.reshape(-1, values)
        content = blocks(stored, kind)
        read[name] = dequantized(content, kind).reshape(value.shape)
        shape = (*stored.shape[:-1], content.shape[-1])
        writer.add_tensor(name, content.reshape(shape), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def usual_kinds(tensors: Mapping[str, Tensor], kind: str) -> dict[str, str]:
    """Types as converters choose them: matrices and filters that are whole blocks are packed."""
    values, _ = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return {
        name: kind if value.ndim > 1 and value.numel() % values == 0 else "F32"
        for name, value in tensors.items()
    }
