"""Load the model of a command that draws or decodes."""

from typing import TYPE_CHECKING

from txt2img.cli.options.device import DeviceOptions
from txt2img.request.fields import SIDES
from txt2img.request.resolve import AdapterPaths
from txt2img.system.resources import require_address_space

if TYPE_CHECKING:
    from txt2img.weights.model import Model


def load_model(name: str, options: DeviceOptions, library: AdapterPaths) -> "Model":
    """Load a model with the VAE, components and refiner of a request. Txt2imgError."""
    require_address_space()
    from txt2img.system.device.memory import oom_as_error
    from txt2img.weights.model_cache import MODEL_CACHE
    from txt2img.weights.refiner import add_refiner

    device = options.choose_device()
    with oom_as_error("the model"):
        model = MODEL_CACHE.load(name, device, library.vae, library.overrides)
    model.memory, model.adapters.paths = options.memory(model.memory), library
    if (multiple := max(model.family.size_multiple, SIDES.step)) != library.images.multiple:
        library.images.fit_to(multiple)
    if library.refiner is not None:
        with oom_as_error("the refiner"):
            add_refiner(model, library.refiner, device)
    return model


def load_seconds(seconds: float) -> float:
    """`seconds`, or 0 if a worker had the last model in memory already."""
    from txt2img.weights.model_cache import MODEL_CACHE

    return 0.0 if MODEL_CACHE.hit else seconds
