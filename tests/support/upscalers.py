"""Tiny upscaler files, made by spandrel's own architectures with random weights."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.tiny import _ROOT
from txt2img.errors import Txt2imgError
from txt2img.weights.upscaler import import_spandrel

try:
    import_spandrel()
    MISSING = ""
except Txt2imgError as error:
    MISSING = str(error)
needs_spandrel = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@cache
def upscaler_file(scale: int = 2) -> Path:
    """A Compact network (Real-ESRGAN's small one) of three layers, so that it sees 3 pixels far."""
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(scale)
    network = Compact(num_feat=8, num_conv=1, upscale=scale)
    return save(network.state_dict(), f"tiny-{scale}x")


def save(state: dict[str, Tensor], name: str) -> Path:
    """A state as a file, in a folder of its own."""
    path = Path(_ROOT.name) / "upscalers" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path
