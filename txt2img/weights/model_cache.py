"""Models that stay in memory between calls, as long as their files stay as they are.

torch is imported when the first is loaded: who keeps models is there before it needs one.
"""

import gc
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from txt2img.request.resolve import OWN_PARTS, OtherParts
from txt2img.system.files import stat_key

if TYPE_CHECKING:
    from txt2img.system.device.device import Device
    from txt2img.weights.model import Model

Key = tuple[object, ...]


@dataclass(frozen=True)
class Kept:
    """A model, what it was loaded from and how, and what its weights then were."""

    key: Key
    model: "Model"
    form: Key


class Keeper:
    """The last model that was loaded; nothing unless it is told to keep."""

    def __init__(self) -> None:
        self.keeps = False
        self.kept: Kept | None = None
        self.reused = False  # whether the last model was in memory already

    def load(
        self,
        name: str,
        device: "Device",
        vae_path: str | None = None,
        others: OtherParts = OWN_PARTS,
    ) -> "Model":
        """As `weights.load.load`; the one in memory if it is that one, wearing nothing.

        How it decodes, what it wears and who goes on after it is the caller's to set: its `memory`,
        `wardrobe` and `second`.
        """
        from txt2img.system.device import memory
        from txt2img.weights.apply_adapters import undress
        from txt2img.weights.checkpoint import find
        from txt2img.weights.load import load

        self.reused = False
        if not self.keeps:
            return load(name, device, vae_path=vae_path, others=others)
        paths = [Path(p).expanduser() for p in (vae_path, others.unet, *others.texts) if p]
        key = (device, vae_path, others, state(find(name)), *map(state, paths))
        last, self.kept = self.kept, None  # whoever is interrupted in here keeps nothing
        if last is None or (last.key, last.form) != (key, form(last.model)):
            if last is not None:
                last = None  # not two in memory at once
                gc.collect()  # a recorded network knows its model, and is known by it
                memory.free()
            model = load(name, device, vae_path=vae_path, others=others)
            last = Kept(key, model, form(model))
        else:
            self.reused = True
        undress(last.model)
        last.model.second = None
        self.kept = last
        return last.model


KEEPER = Keeper()


def form(model: "Model") -> Key:
    """Where each weight is and in what precision: a run that was stopped may have left it between
    two of them. Filters that stay as they are stored may have been widened for a LoRA.
    """
    from txt2img.models.optimize.upcast import lean_weights

    found: list[object] = []
    for network in (model.network, model.vae, *model.text.encoders):
        free = () if model.memory.low_memory else lean_weights(network)
        found += [
            (weight.device, None if name in free else weight.dtype)
            for name, weight in network.named_parameters()
        ]
    return tuple(found)


def state(path: Path) -> Key:
    """What tells whether a model's files are as they were: names, sizes, times, places on disk."""
    full = Path(os.path.abspath(path))
    return (str(full), *((str(file), *stat_key(file.stat())) for file in sorted(_files(full))))


def _files(path: Path) -> Iterable[Path]:
    """The files that loading may look at; a folder's components may be links to other folders."""
    if path.is_dir():
        inside = [path, *(folder for folder in path.iterdir() if folder.is_dir())]
        return [file for folder in inside for file in folder.iterdir() if file.is_file()]
    # Shards lie beside their index, and a VAE's config beside its weights.
    beside = path.name.endswith(".json") or (path.parent / "config.json").is_file()
    return [file for file in (path.parent.iterdir() if beside else [path]) if file.is_file()]
