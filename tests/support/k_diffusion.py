"""k-diffusion's own samplers, without the rest of the package, whose requirements are many."""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest


def sampling() -> ModuleType:
    """Its sampling.py; skips the test if it, torchsde or torchdiffeq is not installed."""
    if "k_diffusion.sampling" not in sys.modules:
        for name in ("k_diffusion", "torchsde", "torchdiffeq", "scipy"):
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"{name} is not installed")
        spec = importlib.util.find_spec("k_diffusion")
        assert spec is not None and spec.submodule_search_locations is not None
        package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
        package.__path__ = list(spec.submodule_search_locations)
        # All that its samplers take from utils.py, which imports torchvision.
        vars(utils)["append_dims"] = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
        sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
        vars(package)["utils"] = utils
    return importlib.import_module("k_diffusion.sampling")
