"""The types of values in weight files: how long each is, what torch calls it. Imports no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# In safetensors' names.
NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
SIZES = {  # bytes of one value
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}


def torch_dtype(name: str) -> "torch.dtype":
    """What torch calls a file's type."""
    import torch

    found = getattr(torch, NAMES[name])
    assert isinstance(found, torch.dtype)
    return found
