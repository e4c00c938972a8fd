"""Draw a picture again and compare: the same bits, or how far apart and why that may be."""

import math
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from txt2img import png
from txt2img.batch import origin
from txt2img.disk import open_regular
from txt2img.errors import BadFile, BadRequest
from txt2img.escape import shown
from txt2img.pipeline import decode, sampled
from txt2img.weights.load import Model


@dataclass(frozen=True)
class Verdict:
    """How a picture and its like, drawn now, compare."""

    psnr: float  # decibels; infinite if they are the same
    reasons: tuple[str, ...] = ()  # what may have made them differ

    @property
    def same(self) -> bool:
        """Whether every pixel is the same."""
        return math.isinf(self.psnr)


def described(path: Path) -> png.Picture:
    """What a picture says of itself, if that suffices to verify it. BadFile, BadRequest."""
    found = png.read(path)
    if found.request is None or not found.pixels_sha256:
        raise BadRequest(f"{shown(str(path))} has no hash of its pixels: txt2img did not write it")
    if (found.width, found.height) != (found.request.width, found.request.height):
        raise BadFile(f"{shown(str(path))} was changed: it has not the size that its record says")
    return found


def verify(path: Path, found: png.Picture, model: Model) -> Verdict:
    """Compare a picture with what its record makes now. BadFile if its pixels were changed."""
    assert found.request is not None
    with open_regular(path) as file:
        try:
            with Image.open(file) as image:
                then = image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise BadFile(f"{shown(str(path))} is not a whole PNG file: {error}") from error
    if png.pixels_sha256(then) != found.pixels_sha256:
        raise BadFile(f"{shown(str(path))} was changed: its pixels are not those of its record")
    request = replace(found.request, model=model.name).filled(model.family.defaults)
    tiled = found.origin.environment.get("vae", "").startswith("tiled")
    model.memory.tiling = "on" if tiled else "auto"
    [last] = deque(sampled(model, [request]), maxlen=1)
    [now] = decode(model, last.x)
    if png.pixels_sha256(now) == found.pixels_sha256:
        return Verdict(math.inf)
    return Verdict(psnr(then, now), reasons(found.origin, origin(model, model.memory.used)))


def psnr(a: Image.Image, b: Image.Image) -> float:
    """The ratio of 255 to two pictures' mean difference, in decibels."""
    one, other = (torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8) for x in (a, b))
    error = float((one.double() - other.double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def reasons(then: png.Origin, now: png.Origin) -> tuple[str, ...]:
    """What of the model and the environment is not as it was."""
    pairs = [("model", then.hash, now.hash)]
    names = dict.fromkeys([*now.environment, *then.environment])
    pairs += [
        (name, then.environment.get(name, ""), now.environment.get(name, "")) for name in names
    ]
    changed = [
        f"{name} {old or 'unknown'} then, {new or 'none'} now"
        for name, old, new in pairs
        if old != new
    ]
    return tuple(changed) or ("nothing that the record tells: another processor, or threads",)
