"""Upscaler models: found by name, loaded by spandrel, which knows their architectures."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from txt2img.errors import BadFile, BadRequest, Txt2imgError, UnknownLayout
from txt2img.request.upscalers import SUFFIX
from txt2img.system.device.device import Device
from txt2img.system.device.memory import oom_as_error
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file, tensors
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.registry.hashes import model_hash

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

EXTRA = "upscaler files need spandrel: pip install --no-deps spandrel einops"
# What two architectures of spandrel that are no upscalers import from torchvision.
TORCHVISION = ("InterpolationMode", "normalize", "rotate")


@dataclass(frozen=True)
class Upscaler:
    """A loaded upscaler model."""

    name: str
    hash: str  # ten hex digits
    scale: int  # 1 for models that only restore
    architecture: str  # as spandrel calls it
    network: "ImageModelDescriptor[torch.nn.Module]"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (1, 3, s·H, s·W) of pixels (1, 3, H, W), both in 0…1."""
        channels = self.network.input_channels
        if channels == 1:  # of brightness alone: each colour by itself
            return torch.cat([self._run(plane) for plane in pixels.split(1, dim=1)], dim=1)
        if channels == 4:
            pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
        return self._run(pixels)[:, :3]

    def _run(self, pixels: Tensor) -> Tensor:
        result: Tensor = self.network(pixels.to(self.network.device, self.network.dtype))
        return result

    @property
    def tiling(self) -> bool:
        """Whether tiles suit it: some models look at the whole picture."""
        return str(self.network.tiling.name) != "INTERNAL"


def load_upscaler(path: Path, device: Device) -> Upscaler:
    """Load an upscaler onto a device. BadFile, UnknownLayout, Txt2imgError without spandrel.

    A dtype that it cannot compute in becomes float32.
    """
    with oom_as_error("the upscaler"):
        network = describe_network(path)
        fits = {torch.float16: network.supports_half, torch.bfloat16: network.supports_bfloat16}
        dtype = device.dtype if fits.get(device.dtype, True) else torch.float32
        network.to(device.torch_device, dtype).eval()
        network.model.requires_grad_(False)
    return Upscaler(
        path.name.removesuffix(SUFFIX),
        model_hash([path]),
        network.scale,
        network.architecture.name,
        network,
    )


def describe_network(path: Path) -> "ImageModelDescriptor[torch.nn.Module]":
    """The network in an upscaler's file, in float32 on the CPU. Raises as `load_upscaler`."""
    header = safetensors_file.header(path)
    spandrel = import_spandrel()
    state = _read_state(header.tensors)
    try:
        with warnings.catch_warnings(action="ignore"):  # of torch, about the architectures' code
            network = spandrel.ModelLoader().load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        raise UnknownLayout(
            f"{shown(path.name)} is no upscaler that spandrel {spandrel.__version__} knows"
        ) from None
    except (RuntimeError, ValueError, KeyError, AssertionError, TypeError, IndexError) as error:
        reason = shown(" ".join(str(error).split()), 120)
        raise BadFile(f"{shown(path.name)} is not a whole upscaler: {reason}") from error
    if not isinstance(network, spandrel.ImageModelDescriptor):
        raise BadRequest(f"{shown(path.name)} is a model for inpainting, not an upscaler")
    return network


def _read_state(refs: Mapping[str, TensorRef]) -> dict[str, Tensor]:
    """All tensors: floats as finite float32, integers, which are tables of indices, as stored."""
    weights = {name: ref for name, ref in refs.items() if ref.dtype in tensors.FLOATS}
    state = tensors.read(weights, torch.device("cpu"), torch.float32)
    tables = {
        name: tensors.read_stored(name, ref) for name, ref in refs.items() if name not in state
    }
    return state | tables


def import_spandrel() -> ModuleType:
    """Import spandrel. Txt2imgError if it is not installed.

    It works without torchvision, of which no upscaler needs anything, and beside one that was built
    for another torch, which fails to import.
    """
    try:
        import spandrel
    except (ImportError, RuntimeError):
        try:
            with _stand_in_for_torchvision():
                import spandrel
        except ImportError as error:
            raise Txt2imgError(EXTRA) from error
    module: ModuleType = spandrel
    return module


@contextmanager
def _stand_in_for_torchvision() -> Iterator[None]:
    """Put empty names in the place of torchvision's while something is imported."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    modules = {name: ModuleType(name) for name in names}
    for name in TORCHVISION:
        setattr(modules[names[-1]], name, None)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
