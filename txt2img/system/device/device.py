"""Choose the device and dtypes to compute with."""

import re
from dataclasses import dataclass, replace

import torch

from txt2img.errors import BadRequest
from txt2img.system import device_names, resources
from txt2img.system.launcher import current
from txt2img.system.text import shown

FAST_HALF = (7, 0)  # the first CUDA capability with fast half precision
HARD_BF16 = (8, 0)  # the first CUDA capability with bf16 in hardware
BROKEN_HALF = "GTX 16"  # GPUs whose half precision gives black images


@dataclass(frozen=True)
class Device:
    """A device, the dtypes of the networks on it, and how they are kept there."""

    torch_device: torch.device
    dtype: torch.dtype
    parts: tuple[tuple[str, torch.dtype], ...] = ()  # of PARTS, those with another dtype
    low: bool = False  # --low-memory: keep weights in their stored dtype, upcast them at use
    offload: str = "none"  # of offload.MODES
    max_memory: int | None = None  # bytes of its memory, on a CPU of the process, at most
    optimize: bool = True  # False: --no-optimize, networks stay plain torch
    compile: bool = False  # the network, by torch.compile
    quantize: str | None = None  # of models.optimize.quantize.KINDS, for the network
    wide: torch.dtype | None = None  # in place of `dtype`, which nobody named, where fp16 overflows

    def dtype_of(self, component: str) -> torch.dtype:
        """The dtype of a model's component, such as "unet" or "text_encoder_2"."""
        return dict(self.parts).get(device_names.part_of(component), self.dtype)

    def without_overflow(self) -> "Device":
        """The device for networks whose activations exceed fp16, unless its dtype was named.

        The VAE keeps its dtype: what it decodes is checked, and decoded anew in float32.
        """
        if self.wide is None:
            return self
        parts = {"vae": self.dtype} | dict(self.parts)
        return replace(self, dtype=self.wide, wide=None, parts=tuple(sorted(parts.items())))


def choose(name: str | None = None, dtype: str | None = None) -> Device:
    """The device and dtypes named, or the best there are. BadRequest if there are none.

    Makes torch use as many threads on a CPU as there are cores.
    """
    named = {} if dtype is None else dtypes(dtype)
    device = torch.device(_auto() if name is None else _existing(name))
    cores = resources.cores() if device.type == "cpu" else None
    if cores is not None and cores < torch.get_num_threads():
        torch.set_num_threads(cores)  # two threads of a core would share its multipliers
    cards = torch.cuda.device_count() if device == torch.device("cuda") else 0
    if cards > 1 and (here := current()).world > 1:
        device = torch.device("cuda", here.local % cards)  # each process of a launch has its own
    if device.index is not None:
        torch.cuda.set_device(device)  # of streams and CUDA graphs
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # TF32 convolutions are no more exact than fp16
    default, wide = named.pop("", None), None
    if default is None:
        default = _default_dtype(device)
        wide = torch.bfloat16 if has_bf16(device) else torch.float32
    parts = tuple(sorted(named.items()))
    return Device(device, default, parts, wide=wide if default == torch.float16 else None)


def dtypes(text: str) -> dict[str, torch.dtype]:
    """Parse "fp16" or "unet=bf16,vae=fp32", by part; "" is all others. BadRequest."""
    return {part: getattr(torch, name) for part, name in device_names.dtypes(text).items()}


def for_training(name: str | None = None, dtype: str | None = None) -> Device:
    """The device and dtype to train in: bf16, which needs no loss scaling, where it is fast.

    A CPU without it in hardware computes in it hundreds of times slower. On a CPU, also flushes
    denormal numbers to zero and keeps freed memory. Raises BadRequest.
    """
    device = choose(name, dtype)
    if device.torch_device.type == "cpu":
        # AdamW's moments of seldom used weights become denormal, which makes its step 17 times
        # slower.
        torch.set_flush_denormal(True)
        resources.keep_heap()
    if dtype is not None:
        return device
    dtype_ = torch.bfloat16 if has_bf16(device.torch_device) else torch.float32
    return Device(device.torch_device, dtype_)


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= HARD_BF16
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def describe(device: torch.device) -> str:
    """The device for an image's record, with the GPU's name, since pixels depend on it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def description(device: torch.device, precision: str) -> str:
    """A line for --verbose: the device, the dtypes, and on a CPU the threads."""
    if device.type != "cpu":
        return f"Computing on {describe(device)} in {precision}"
    threads, known = torch.get_num_threads(), resources.cores()
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    if known is not None:
        count += f" on {known} physical core{'s' if known > 1 else ''}"
    line = f"Computing on the CPU in {precision}, {count}"
    if precision == "float32" and has_bf16(device):
        line += "; it has bf16 in hardware: --dtype bf16 is quicker, most of all for large models"
    return line


def _auto() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _existing(name: str) -> str:
    """Check a device's name. BadRequest lists those of this machine."""
    here = ["cpu"]
    if torch.cuda.is_available():
        cards = torch.cuda.device_count()
        here += ["cuda", *(f"cuda:{i}" for i in range(cards) if cards > 1)]
    if torch.backends.mps.is_available():
        here.append("mps")
    name = name.lower()
    if name not in here and not (name == "cuda:0" and "cuda" in here):
        known = re.fullmatch(r"(cpu|cuda(:\d+)?|mps)", name)
        message = f"this machine has no {name}" if known else f"no device {shown(name)}"
        raise BadRequest(f"{message}; choose from {', '.join(here)}")
    return name


def _default_dtype(device: torch.device) -> torch.dtype:
    """float16 on GPUs where it is fast and right; float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    is_fast = torch.cuda.get_device_capability(device) >= FAST_HALF
    is_right = BROKEN_HALF not in torch.cuda.get_device_name(device)
    return torch.float16 if is_fast and is_right else torch.float32
