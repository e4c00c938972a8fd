"""Finished latents, kept until their pictures are on the disk: no step need be drawn twice.

A latent lies in a hidden safetensors file beside the pictures, which says of itself what a picture
does: its request, the model and the environment. It goes when its picture is written.
"""

import json
import re
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from txt2img.errors import BadFile, BadOutput, BadRequest
from txt2img.images import formats
from txt2img.images.output import Output, with_suffix
from txt2img.images.record import Origin, json_object
from txt2img.images.resume import Item, forget, latent_path
from txt2img.request.request import Request
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file, tensors

FORMAT = 1  # of the JSON text
TENSOR = "latent"
SUFFIX = ".latent"  # of those that are kept for good
NAME = re.compile(r"[^\W_][\w .+-]{0,255}")  # in no other folder


@dataclass(frozen=True)
class Latent:
    """A picture before its decoding."""

    x: Tensor  # (C, h, w), float32
    request: Request  # filled, for one picture
    origin: Origin
    first_seed: int | None
    name: str  # of the picture's file
    step: int  # after which it was kept: before the last one it is only what x0 was thought to be
    steps: int

    @property
    def finished(self) -> bool:
        """Whether all steps were drawn."""
        return self.step == self.steps


class LatentStore:
    """Where one run keeps its latents, and which of them are still there."""

    def __init__(self, output: Output, origin: Origin, keep: bool = False) -> None:
        self.output, self.origin, self.keep = output, origin, keep
        self.on = output.pattern != "-"  # standard output has no folder
        self.left: dict[Path, str] = {}  # what they are

    def save(self, item: Item, x: Tensor, step: int, steps: int) -> None:
        """Keep an item's latent (C, h, w), if it is finite.

        What cannot be kept is no failure: the picture itself may still find room.
        """
        if not self.on or not bool(torch.isfinite(x).all()):
            return
        path = latent_path(self.output.folder, item, whole=step == steps)
        with suppress(BadOutput):
            latent = Latent(
                x.float(),
                replace(item.request, model=self.origin.model),  # a name, never the user's path
                self.origin,
                item.first_seed,
                with_suffix(item.name, item.number),
                step,
                steps,
            )
            write(latent, path)
            self.left[path] = "latent" if latent.finished else f"latent of step {step} of {steps}"

    def load(self, item: Item) -> Tensor | None:
        """The latent (C, h, w) that a run which ended before its decoding left of this item."""
        if not self.on:
            return None
        path = latent_path(self.output.folder, item)
        try:
            found = read(path)
        except (BadFile, BadRequest):
            return None
        now = replace(item.request, model=self.origin.model)
        if (found.request, found.first_seed) != (now, item.first_seed) or not found.finished:
            return None
        if found.origin != self.origin:
            return None  # other software: other bits
        self.left[path] = "latent"
        return found.x

    def delete(self, item: Item, picture: Path | None = None) -> None:
        """Remove an item's latents: its picture is written, or is not wanted."""
        if not self.on:
            return
        folder = self.output.folder
        if self.keep and picture is not None:
            with suppress(FileNotFoundError):
                data = latent_path(folder, item).read_bytes()
                self.output.write_beside(data, f"{picture.stem}{SUFFIX}")
        forget(folder, item)
        for whole in (True, False):
            self.left.pop(latent_path(folder, item, whole), None)

    def remarks(self) -> list[str]:
        """What to say of the latents that are still there when the run ends."""
        return [
            f"The {what} is kept: txt2img decode {shlex.quote(str(path))}"
            for path, what in self.left.items()
            if path.exists()  # its folder may be gone
        ]


def write(latent: Latent, path: Path) -> None:
    """Write a latent: whole, or not at all. BadOutput."""
    described = {
        "version": FORMAT,
        "request": latent.request.to_json(),
        **latent.origin.to_json(),
        "first_seed": latent.first_seed,
        "name": latent.name,
        "step": latent.step,
        "steps": latent.steps,
    }
    safetensors_file.write({TENSOR: latent.x}, path, {"txt2img": json.dumps(described)})


def read(path: Path) -> Latent:
    """The latent in a file. BadFile, or BadRequest if its request cannot be."""
    with files.open_regular(path) as file:
        if format := formats.by_content(file.read(formats.HEAD)):
            raise BadFile(f"{shown(str(path))} is a {format.name} picture already, and no latent")
    header = safetensors_file.header(path)
    stored = header.tensors.get(TENSOR)
    if "txt2img" not in header.metadata or stored is None or len(stored.shape) != 3:
        raise BadFile(f"{shown(str(path))} is no latent that txt2img kept")
    try:
        found = json_object(files.parse_json(header.metadata["txt2img"]))
        if found.get("version") != FORMAT:
            raise ValueError(f"version {shown(found.get('version'))}, known is {FORMAT}")
        name = str(found.get("name"))
        first = found.get("first_seed")
        origin = Origin.from_json(found.get("model"), found.get("environment"))
        request = Request.from_json(json_object(found.get("request")))
        steps = _whole(found.get("step")), _whole(found.get("steps"))
        first_seed = None if first is None else _whole(first)
    except ValueError as error:
        raise BadFile(f"{shown(str(path))} has a broken record: {error}") from error
    x = tensors.read({TENSOR: stored}, torch.device("cpu"), torch.float32)[TENSOR]
    safe = name if NAME.fullmatch(name) and formats.by_suffix(name) else "picture.png"
    return Latent(x, request, origin, first_seed, safe, *steps)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{shown(value)} is no whole number")
    return value
