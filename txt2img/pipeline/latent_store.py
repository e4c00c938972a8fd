"""Latents saved until their images are written, so that no step is ever drawn twice.

A latent lies in a hidden safetensors file next to the images, with the same record: its request,
the model and the environment. It is deleted when its image is written.
"""

import json
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from txt2img.errors import BadFile, BadOutput, BadRequest
from txt2img.images import formats
from txt2img.images.metadata.parsed import json_object
from txt2img.images.output import Output, with_suffix
from txt2img.images.record import Origin
from txt2img.images.resume import Item, latent_path, remove_latents
from txt2img.pipeline.generate import Progress
from txt2img.request import Request
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file, tensors

FORMAT = 1  # of the JSON text
TENSOR = "latent"
SUFFIX = ".latent"  # of those that --save-latents keeps
NAME = re.compile(r"[^\W_][\w .+-]{0,255}")  # in no other folder


@dataclass(frozen=True)
class Latent:
    """An image before its decoding, and what its record says."""

    x: Tensor  # (C, h, w), float32
    request: Request  # filled, for one picture
    origin: Origin
    first_seed: int | None
    name: str  # of the picture's file
    step: int  # that it was saved after: before the last one it is x0
    steps: int

    @property
    def finished(self) -> bool:
        """Whether all steps were drawn."""
        return self.step == self.steps


class LatentStore:
    """Saves one run's latents next to its images, and knows which of them are still there."""

    def __init__(self, output: Output, origin: Origin, keep: bool = False) -> None:
        self.output, self.origin, self.keep = output, origin, keep
        self.on = output.pattern != "-"  # standard output has no folder
        self.left: dict[Path, str] = {}  # path → what it is

    def save(self, items: Sequence[Item], state: Progress) -> None:
        """Save the latents of a batch after a step, or x0 before the last step."""
        is_last = state.step == state.steps
        for item, x in zip(items, state.x if is_last else state.x0, strict=True):
            if self.on and bool(torch.isfinite(x).all()):
                self._save_one(item, x, state.step, state.steps)

    def _save_one(self, item: Item, x: Tensor, step: int, steps: int) -> None:
        """Save an item's latent (C, h, w). A full disk is no failure: the image may still fit."""
        path = latent_path(self.output.folder, item, whole=step == steps)
        request = replace(item.request, model=self.origin.model)  # a name, never the user's path
        name = with_suffix(item.name, item.number)
        latent = Latent(x.float(), request, self.origin, item.first_seed, name, step, steps)
        with suppress(BadOutput):
            write(latent, path)
            self.left[path] = "latent" if latent.finished else f"latent of step {step} of {steps}"

    def load(self, item: Item) -> Tensor | None:
        """The latent (C, h, w) of an earlier run that ended between sampling and decoding it."""
        if not self.on:
            return None
        path = latent_path(self.output.folder, item)
        try:
            latent = read(path)
        except (BadFile, BadRequest):
            return None
        request = replace(item.request, model=self.origin.model)
        if (latent.request, latent.first_seed) != (request, item.first_seed):
            return None
        if not latent.finished or latent.origin != self.origin:  # other software: other bits
            return None
        self.left[path] = "latent"
        return latent.x

    def delete(self, item: Item, picture: Path | None = None) -> None:
        """Remove an item's latents: its image is written, or rejected; with `keep`, copy them."""
        if not self.on:
            return
        folder = self.output.folder
        if self.keep and picture is not None:
            with suppress(FileNotFoundError):
                data = latent_path(folder, item).read_bytes()
                self.output.write_beside(data, f"{picture.stem}{SUFFIX}")
        remove_latents(folder, item)
        for whole in (True, False):
            self.left.pop(latent_path(folder, item, whole), None)

    def remarks(self) -> list[str]:
        """A line for each latent that is still there when the run ends."""
        return [
            f"The {what} is kept: txt2img decode {shlex.quote(str(path))}"
            for path, what in self.left.items()
            if path.exists()  # its folder may be gone
        ]


def write(latent: Latent, path: Path) -> None:
    """Write a latent: whole, or not at all. BadOutput."""
    record = {
        "version": FORMAT,
        "request": latent.request.to_json(),
        **latent.origin.to_json(),
        "first_seed": latent.first_seed,
        "name": latent.name,
        "step": latent.step,
        "steps": latent.steps,
    }
    safetensors_file.write({TENSOR: latent.x}, path, {"txt2img": json.dumps(record)})


def read(path: Path) -> Latent:
    """Read a latent from a file. BadFile, or BadRequest if its request cannot be."""
    with files.open_regular(path) as file:
        if format := formats.by_content(file.read(formats.HEAD)):
            raise BadFile(f"{shown(path)} is a {format.name} picture already, and no latent")
    header = safetensors_file.header(path)
    stored = header.tensors.get(TENSOR)
    if "txt2img" not in header.metadata or stored is None or len(stored.shape) != 3:
        raise BadFile(f"{shown(path)} is no latent that txt2img saved")
    try:
        record = json_object(files.parse_json(header.metadata["txt2img"]))
        if record.get("version") != FORMAT:
            raise ValueError(f"version {shown(record.get('version'))}, known is {FORMAT}")
        name, first = str(record.get("name")), record.get("first_seed")
        origin = Origin.from_json(record.get("model"), record.get("environment"))
        request = Request.from_json(json_object(record.get("request")))
        steps = _whole(record.get("step")), _whole(record.get("steps"))
        first_seed = None if first is None else _whole(first)
    except ValueError as error:
        raise BadFile(f"{shown(path)} has a broken record: {error}") from error
    x = tensors.read({TENSOR: stored}, torch.device("cpu"), torch.float32)[TENSOR]
    safe = name if NAME.fullmatch(name) and formats.by_suffix(name) else "picture.png"
    return Latent(x, request, origin, first_seed, safe, *steps)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{shown(value)} is no whole number")
    return value
