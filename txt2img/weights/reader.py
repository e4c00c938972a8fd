"""What reads a network's weights: once, or again for each use."""

import os
from collections.abc import Collection, Set
from pathlib import Path

import torch
from torch import Tensor

from txt2img.errors import BadFile
from txt2img.system import files
from txt2img.system.device.offload import Read
from txt2img.system.text import shown
from txt2img.weights.formats import gpu_reader, tensors
from txt2img.weights.layouts.components import Part, bare


def reader(part: Part, home: torch.device, dtype: torch.dtype, slimmed: Set[str]) -> Read:
    """What reads a network's weights by their names; those `slimmed` stay as they are stored.

    It raises as reading.read does, and BadFile if a file is no longer the one that was checked.
    """
    kept = {part.theirs(bare(name)) for name in slimmed}
    were = {path: _stamp(path) for path in {stored.path for stored in part.tensors.values()}}

    def read(names: Collection[str]) -> dict[str, Tensor]:
        for path, was in were.items():
            if _stamp(path) != was:
                raise BadFile(f"{shown(path.name)} was changed while it was in use; start again")
        theirs = {name: part.theirs(bare(name)) for name in names}
        stored = {theirs[name]: part.tensors[bare(name)] for name in names}
        through = gpu_reader if home.type == "cuda" else tensors
        found = through.read(stored, home, dtype, kept)
        return {name: found[theirs[name]] for name in names}

    return read


def _stamp(path: Path) -> tuple[int, int, int]:
    """What tells a file from another that took its place. BadFile."""
    with files.open_regular(path) as file:
        return files.stat_key(os.fstat(file.fileno()))
