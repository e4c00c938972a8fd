"""Where and how exactly to compute."""

import re
from dataclasses import dataclass

import torch

from txt2img.errors import BadRequest
from txt2img.system import device_names, resources
from txt2img.system.launcher import found
from txt2img.system.text import shown

FAST_HALF = (7, 0)  # the first CUDA capability whose half precision is quick
HARD_BF16 = (8, 0)  # the first CUDA capability that computes in bf16
BROKEN_HALF = "GTX 16"  # cards that give black pictures in it


@dataclass(frozen=True)
class Device:
    """A place to compute, and the precision of the networks there, or of single ones."""

    torch_device: torch.device
    dtype: torch.dtype
    parts: tuple[tuple[str, torch.dtype], ...] = ()  # of PARTS, those of another precision
    low: bool = False  # keep large weights as they are stored, and upcast them at use
    offload: str = "none"  # of offload.MODES: where parts that are not in use wait
    compile: bool = False  # the U-Net, by torch.compile
    quantize: str | None = None  # of models.quantized.KINDS: how narrow the U-Net's weights become

    def dtype_of(self, component: str) -> torch.dtype:
        """The precision of a model's component, such as "unet" or "text_encoder_2"."""
        return dict(self.parts).get(component.split("_")[0], self.dtype)


def choose(name: str | None = None, dtype: str | None = None) -> Device:
    """The device and precision asked for, or the best there are. BadRequest if there are none.

    On a CPU torch is told to compute in as many threads as there are cores.
    """
    asked = {} if dtype is None else dtypes(dtype)
    device = torch.device(_auto() if name is None else _existing(name))
    if device.type == "cpu":
        _use_cores()
    cards = torch.cuda.device_count() if device == torch.device("cuda") else 0
    if cards > 1 and (here := found()).world > 1:
        device = torch.device("cuda", here.local % cards)  # each process of a launch has its own
    if device.type == "cuda":
        _use_card(device)
    most = asked.pop("", None) or _default_dtype(device)
    return Device(device, most, tuple(sorted(asked.items())))


def dtypes(text: str) -> dict[str, torch.dtype]:
    """What "fp16" or "unet=bf16,vae=fp32" asks for, by part; "" is all others. BadRequest."""
    return {part: getattr(torch, name) for part, name in device_names.dtypes(text).items()}


def for_training(name: str | None = None, dtype: str | None = None) -> Device:
    """The device and precision to learn in: bf16, whose range needs no care, where it is quick.

    A CPU without it in hardware computes in it hundreds of times slower. Raises BadRequest.
    On a CPU torch is told to take denormal numbers for zeros, and freed memory is kept.
    """
    device = choose(name, dtype)
    if device.torch_device.type == "cpu":
        # the optimiser's moments of weights that are seldom used fade into such numbers, and with
        # them AdamW's step takes 17 times as long
        torch.set_flush_denormal(True)
        resources.keep_heap()
    if dtype is not None:
        return device
    quick = has_bf16(device.torch_device)
    return Device(device.torch_device, torch.bfloat16 if quick else torch.float32)


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= HARD_BF16
    if device.type == "cpu":
        # torch has no public name for it in all the versions that this program runs with
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def describe(device: torch.device) -> str:
    """The device for a picture's record, with the card's name: its pixels depend on it."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def description(place: torch.device, precision: str) -> str:
    """Where, in how many threads and how exactly it is computed, and by whose choice, in a line."""
    if place.type != "cpu":
        return f"Computing on {describe(place)} in {precision}"
    threads, known = torch.get_num_threads(), resources.cores()
    count = f"{threads} thread{'s' if threads > 1 else ''}"
    if known is not None:
        count += f" on {known} physical core{'s' if known > 1 else ''}"
    line = f"Computing on the CPU in {precision}, {count}"
    if precision == "float32" and has_bf16(place):
        line += "; it has bf16 in hardware: --dtype bf16 is quicker, most of all for large models"
    return line


def _use_cores() -> None:
    """No more threads than physical cores: a second one on a core has nothing to multiply with."""
    cores = resources.cores()
    if cores is not None and cores < torch.get_num_threads():
        torch.set_num_threads(cores)


def _use_card(device: torch.device) -> None:
    """Make a card the process's own, and its float32 what it says."""
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and recordings are the current card's
    torch.backends.cudnn.allow_tf32 = False  # with it convolutions are no more exact than fp16


def _auto() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _existing(name: str) -> str:
    """The name of a device of this machine. BadRequest names those that are there."""
    here = ["cpu"]
    if torch.cuda.is_available():
        cards = torch.cuda.device_count()
        here += ["cuda", *(f"cuda:{i}" for i in range(cards) if cards > 1)]
    if torch.backends.mps.is_available():
        here.append("mps")
    name = name.lower()
    if name not in here and not (name == "cuda:0" and "cuda" in here):
        known = re.fullmatch(r"(cpu|cuda(:\d+)?|mps)", name)
        what = f"this machine has no {name}" if known else f"no device {shown(name)}"
        raise BadRequest(f"{what}; choose from {', '.join(here)}")
    return name


def _default_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the card is quick and right in it; a CPU computes in float32 unasked."""
    if device.type != "cuda":
        return torch.float32
    quick = torch.cuda.get_device_capability(device) >= FAST_HALF
    right = BROKEN_HALF not in torch.cuda.get_device_name(device)
    return torch.float16 if quick and right else torch.float32
