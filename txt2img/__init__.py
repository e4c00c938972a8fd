"""txt2img: a picture from a text prompt.

The library's three words: `Request`, `load` (a model by name or path) and `generate` (a Request
into pictures). They are imported when first used, so that `txt2img --help` needs no torch.
"""

from typing import TYPE_CHECKING

from txt2img.system.version import __version__

if TYPE_CHECKING:
    from txt2img.pipeline.generate import generate
    from txt2img.request.request import Request
    from txt2img.weights.load import load

__all__ = ["Request", "__version__", "generate", "load"]

_HOMES = {
    "Request": "txt2img.request.request",
    "generate": "txt2img.pipeline.generate",
    "load": "txt2img.weights.load",
}


def __getattr__(name: str) -> object:
    """The library's words, imported when asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
