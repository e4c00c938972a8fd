"""Guesses of the device and dtypes without torch, for --dry-run; device/device.py chooses them."""

import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

from txt2img.errors import BadRequest
from txt2img.system.text import shown

# Users' names of dtypes, and torch's.
DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
}
PARTS = ("unet", "vae", "text")
ALIASES = {"transformer": "unet"}  # both denoise; a model has one of them
DTYPE_NAMES = "float32, bf16, fp16"
TORCHAO = "needs torchao, which is not installed: pip install torchao"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


# Other programs' words.
OTHER_DTYPES = {
    **dict.fromkeys(("half", "f16", "16"), "fp16"),
    **dict.fromkeys(("full", "single", "float", "f32", "32", "no", "float64", "fp64"), "float32"),
    **dict.fromkeys(("brain", "bfloat"), "bf16"),
    **dict.fromkeys(("int8", "fp8", "q8", "q8_0", "8bit"), "fp16, with --quantize int8"),
}
OTHER_DEVICES = {
    **dict.fromkeys(("gpu", "nvidia", "rocm", "amd", "hip", "0"), "cuda"),
    **dict.fromkeys(("metal", "apple", "m1"), "mps"),
    **dict.fromkeys(("processor", "none"), "cpu"),
}


def unknown_device(name: str) -> BadRequest:
    """The error for a device of no known name."""
    word = OTHER_DEVICES.get(name.lower())
    hint = f"; did you mean {word}?" if word else ""
    return BadRequest(f"no device {shown(name)}; choose from cuda, mps, cpu{hint}")


def dtypes(text: str) -> dict[str, str]:
    """Parse "fp16" or "unet=bf16,vae=fp32" by part; "" is all others. BadRequest."""
    parsed: dict[str, str] = {}
    for row in text.split(","):
        part, sign, name = row.strip().lower().rpartition("=")
        part = part_of(part)
        if name not in DTYPES:
            hint = f"; did you mean {OTHER_DTYPES[name]}?" if name in OTHER_DTYPES else ""
            raise BadRequest(f"no dtype {shown(name)}; choose from {DTYPE_NAMES}{hint}")
        if (sign and part not in PARTS) or part in parsed:
            why = (
                "is there twice" if part in parsed else f"is no part; parts are {', '.join(PARTS)}"
            )
            raise BadRequest(f"--dtype: {shown(part or name)} {why}")
        parsed[part] = DTYPES[name]
    return parsed


def part_of(component: str) -> str:
    """The part that a model's component is, such as text for text_encoder_2."""
    part = component.split("_")[0]
    return ALIASES.get(part, part)


def guess_device(name: str | None) -> str:
    """The kind of the device named, or the likely best: cuda, mps or cpu. BadRequest."""
    if name is not None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name.lower()):
            raise unknown_device(name)
        return name.lower().split(":")[0]
    if _has_gpu():
        return "cuda"
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mps" if apple else "cpu"


def guess_dtypes(device: str, text: str | None, fits_half: bool = True) -> dict[str, str]:
    """The dtype of each of PARTS: as named, or half precision on a GPU.

    Without `fits_half` that is bf16 for all but the VAE, as in Device.without_overflow.
    """
    named = {} if text is None else dtypes(text)
    default = named.pop("", None)
    if default is None and device == "cuda":
        default = "float16" if fits_half else "bfloat16"
        named = {"vae": "float16"} | named
    return {part: named.get(part, default or "float32") for part in PARTS}


def describe_dtypes(dtypes: dict[str, str]) -> str:
    """The dtype of all parts, or of each where they differ, as records have it."""
    if len(set(dtypes.values())) == 1:
        return dtypes["unet"]
    return ",".join(f"{part}={name}" for part, name in dtypes.items())


def _has_gpu() -> bool:
    """Whether there is a usable Nvidia GPU, and a torch with CUDA."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if not (Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()):
        return False
    spec = importlib.util.find_spec("torch")
    folders = (spec.submodule_search_locations or []) if spec else []
    return any((Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in folders)
