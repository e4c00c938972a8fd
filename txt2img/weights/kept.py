"""Models that stay in memory between calls, as long as their files stay as they are."""

import os
from pathlib import Path

from txt2img.device import Device
from txt2img.weights.load import DEFAULT, Model, load
from txt2img.weights.wear import undress

Key = tuple[object, ...]


class Keeper:
    """The last model that was loaded; nothing unless it is told to keep."""

    def __init__(self) -> None:
        self.keeps = False
        self.key: Key | None = None
        self.model: Model | None = None

    def load(self, name: str, device: Device, vae_path: str | None = None) -> Model:
        """As `weights.load.load`; the one in memory if it is that one, and wears nothing."""
        if not self.keeps:
            return load(name, device, vae_path=vae_path)
        key = (name, device, vae_path, state(name), state(vae_path))
        if self.model is None or key != self.key:
            self.key = self.model = None  # not two at once
            self.model, self.key = load(name, device, vae_path=vae_path), key
        undress(self.model)
        return self.model


KEEPER = Keeper()


def keep() -> None:
    """Keep the model that is loaded last, from now on: for a process that serves many calls."""
    KEEPER.keeps = True


def state(name: str | None) -> tuple[tuple[str, int, int, int], ...]:
    """What tells whether files are as they were: full names, sizes, times and places on disk."""
    if name is None:
        return ()
    root = DEFAULT if name == "default" else Path(os.path.realpath(name))
    files = sorted(root.rglob("*")) if root.is_dir() else [root]
    known = [(str(path), path.stat()) for path in files if path.is_file()]
    return tuple((path, s.st_size, s.st_mtime_ns, s.st_ino) for path, s in known)
