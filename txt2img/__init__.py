"""txt2img: images from text.

`load` gives a model, `generate` draws a Request's images with it, `stream` yields each step of
them. Everything with torch is imported when first used, so that `txt2img --help` needs none.
"""

from typing import TYPE_CHECKING

from txt2img.errors import (
    BadFile,
    BadOutput,
    BadRequest,
    EnhanceFailed,
    MissingWeights,
    ModelNotFound,
    OutOfMemory,
    Rejected,
    Txt2imgError,
    UnknownLayout,
)
from txt2img.system.version import __version__

if TYPE_CHECKING:
    from txt2img.pipeline.generate import Progress, decode, generate, stream
    from txt2img.pipeline.result import GeneratedImage
    from txt2img.request import Compat, Request, Sampler, Schedule
    from txt2img.request.adapters import Embedding, Lora
    from txt2img.weights.load import load
    from txt2img.weights.model import Model

__all__ = [
    "BadFile",
    "BadOutput",
    "BadRequest",
    "Compat",
    "Embedding",
    "EnhanceFailed",
    "GeneratedImage",
    "Lora",
    "MissingWeights",
    "Model",
    "ModelNotFound",
    "OutOfMemory",
    "Progress",
    "Rejected",
    "Request",
    "Sampler",
    "Schedule",
    "Txt2imgError",
    "UnknownLayout",
    "__version__",
    "decode",
    "generate",
    "load",
    "stream",
]

_HOMES = {
    **dict.fromkeys(("Progress", "decode", "generate", "stream"), "txt2img.pipeline.generate"),
    **dict.fromkeys(("Compat", "Request", "Sampler", "Schedule"), "txt2img.request"),
    **dict.fromkeys(("Embedding", "Lora"), "txt2img.request.adapters"),
    "GeneratedImage": "txt2img.pipeline.result",
    "Model": "txt2img.weights.model",
    "load": "txt2img.weights.load",
}


def __getattr__(name: str) -> object:
    """Import a name of the library when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
