"""Keep the last model in memory between calls, as long as its files do not change.

torch is imported with the first model, so that a worker starts without it.
"""

import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.request.resolve import NO_OVERRIDES, ComponentOverrides
from txt2img.system.files import expand_user, stat_key

if TYPE_CHECKING:
    from txt2img.system.device.device import Device
    from txt2img.weights.model import Model

Key = tuple[object, ...]


@dataclass(frozen=True)
class CachedModel:
    """A model, the key that it was loaded by, and the state of its weights after that."""

    key: Key
    model: "Model"
    weights: Key


class ModelCache:
    """A cache of one model; loads anew every time unless `enabled`."""

    def __init__(self) -> None:
        self.enabled = False
        self.cached: CachedModel | None = None
        self.hit = False  # whether the last model was in memory already

    def load(
        self,
        name: str,
        device: "Device",
        vae_path: str | None = None,
        overrides: ComponentOverrides = NO_OVERRIDES,
    ) -> "Model":
        """Load as `weights.load.load`, or return the cached model without adapters and refiner."""
        from txt2img.system.device import memory
        from txt2img.weights.apply_adapters import remove_adapters
        from txt2img.weights.checkpoint import find_model
        from txt2img.weights.load import load
        from txt2img.weights.registry.find import named_parts

        self.hit = False
        if not self.enabled:
            return load(name, device, vae_path=vae_path, overrides=overrides)
        vae, texts = named_parts(name)
        given = (vae_path, overrides.unet, *overrides.texts, vae, *texts)
        paths = [expand_user(p) for p in given if p]
        key = (device, vae_path, overrides, files_key(find_model(name)), *map(files_key, paths))
        last, self.cached = self.cached, None  # an interrupt in here leaves the cache empty
        if last is None or (last.key, last.weights) != (key, weights_key(last.model)):
            if last is not None:
                last = None  # free it first: two models may not fit
                gc.collect()  # a recorded network and its model refer to each other
                memory.free()
            model = load(name, device, vae_path=vae_path, overrides=overrides)
            last = CachedModel(key, model, weights_key(model))
        else:
            self.hit = True
        remove_adapters(last.model)
        last.model.refiner = None
        self.cached = last
        return last.model


MODEL_CACHE = ModelCache()


def weights_key(model: "Model") -> Key:
    """Device and dtype of each weight: a run that was interrupted may have left some moved.

    Filters that stay in their stored dtype have none here, since a LoRA may have widened them.
    """
    from txt2img.models.optimize.upcast import stored_dtype_weights

    key: list[object] = []
    for network in (model.network, model.vae, *model.text.encoders):
        free = () if model.memory.low_memory else stored_dtype_weights(network)
        key += [
            (weight.device, None if name in free else weight.dtype)
            for name, weight in network.named_parameters()
        ]
    return tuple(key)


def files_key(path: Path) -> Key:
    """Names, sizes, times and inodes of a model's files: equal as long as they are unchanged."""
    full = Path(os.path.abspath(path))
    return (str(full), *((str(file), *stat_key(file.stat())) for file in sorted(_files(full))))


def _files(path: Path) -> Iterable[Path]:
    """The files that loading may read; a folder's components may be links to other folders."""
    if path.is_dir():
        folders = [path, *(folder for folder in path.iterdir() if folder.is_dir())]
        return [file for folder in folders for file in folder.iterdir() if file.is_file()]
    # Shards lie beside their index, and a VAE's config beside its weights.
    several = path.name.endswith(".json") or (path.parent / "config.json").is_file()
    return [file for file in (path.parent.iterdir() if several else [path]) if file.is_file()]
