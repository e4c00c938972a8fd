"""What this machine most likely computes on, told without torch: a guess, for what is said before.

What is then drawn with is device.py's to choose.
"""

import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

from txt2img.errors import BadRequest
from txt2img.system.text import shown

# What users may call a precision, and torch's name for it.
DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
    "fp16": "float16",
    "float16": "float16",
}
PARTS = ("unet", "vae", "text")
DTYPE_NAMES = "float32, bf16, fp16"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def dtypes(text: str) -> dict[str, str]:
    """What "fp16" or "unet=bf16,vae=fp32" asks for, by part; "" is all others. BadRequest."""
    asked: dict[str, str] = {}
    for row in text.split(","):
        part, sign, name = row.strip().lower().rpartition("=")
        if name not in DTYPES:
            raise BadRequest(f"no dtype {shown(name)}; choose from {DTYPE_NAMES}")
        if (sign and part not in PARTS) or part in asked:
            why = "is there twice" if part in asked else f"is no part; parts are {', '.join(PARTS)}"
            raise BadRequest(f"--dtype: {shown(part or name)} {why}")
        asked[part] = DTYPES[name]
    return asked


def guess_device(name: str | None) -> str:
    """The kind of device that a name means, or the best there seems to be: cuda, mps or cpu.

    BadRequest for what is no device's name.
    """
    if name is not None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", name.lower()):
            raise BadRequest(f"no device {shown(name)}; choose from cuda, mps, cpu")
        return name.lower().split(":")[0]
    if _has_card():
        return "cuda"
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mps" if apple else "cpu"


def guess_dtypes(device: str, text: str | None) -> dict[str, str]:
    """The precision of each of PARTS: as asked for, else half where cards are quick in it."""
    asked = {} if text is None else dtypes(text)
    most = asked.pop("", None) or ("float16" if device == "cuda" else "float32")
    return {part: asked.get(part, most) for part in PARTS}


def describe_dtypes(dtypes: dict[str, str]) -> str:
    """The precision of all parts, or of each where they differ, as records have it."""
    if len(set(dtypes.values())) == 1:
        return dtypes["unet"]
    return ",".join(f"{part}={name}" for part, name in dtypes.items())


def _has_card() -> bool:
    """Whether there is an Nvidia card that may be used, and a torch that can."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if not (Path("/dev/nvidia0").exists() or Path("/dev/dxg").exists()):
        return False
    found = importlib.util.find_spec("torch")
    folders = (found.submodule_search_locations or []) if found else []
    return any((Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in folders)
