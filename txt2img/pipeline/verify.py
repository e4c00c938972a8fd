"""Draw a picture again and compare: the same bits, or how far apart and why that may be."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from txt2img.errors import BadFile, BadRequest
from txt2img.images import (
    animation,
    contact_sheet,
    formats,
    image_file,
)
from txt2img.images.record import ImageInfo, Origin, metadata, pixels_sha256
from txt2img.pipeline.generate import images_of
from txt2img.pipeline.result import origin
from txt2img.system.files import open_regular
from txt2img.system.text import shown
from txt2img.system.version import __version__
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.model import Model


@dataclass(frozen=True)
class Verdict:
    """How a picture and its like, drawn now, compare."""

    psnr: float  # decibels; infinite if they are the same
    reasons: tuple[str, ...] = ()  # what may have made them differ

    @property
    def same(self) -> bool:
        """Whether every pixel is the same."""
        return math.isinf(self.psnr)


def described(path: Path) -> ImageInfo:
    """What a picture says of itself, if that suffices to verify it. BadFile, BadRequest."""
    found = image_file.read(path)
    if found.request is None or not found.pixels_sha256:
        raise BadRequest(f"{shown(str(path))} has no hash of its pixels: txt2img did not write it")
    if (found.width, found.height) != (found.request.width, found.request.height):
        raise BadFile(f"{shown(str(path))} was changed: it has not the size that its record says")
    return found


def pictures(name: str) -> list[str]:
    """The picture of that name, or all in that folder but for sheets and steps.

    BadFile, BadRequest.
    """
    if not Path(name).is_dir():
        return [name]
    try:
        entries = sorted(entry for entry in Path(name).iterdir() if entry.name[:1] != ".")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadFile(f"cannot read {shown(name)}: {reason}") from error
    found = [str(path) for path in entries if formats.by_suffix(path.name) and not _is_beside(path)]
    if not found:
        raise BadRequest(f"{shown(name)} has no pictures")
    return found


def verify(path: Path, found: ImageInfo, model: Model, lossy: bool = False) -> Verdict:
    """Compare a picture with what its record makes now.

    BadFile if its pixels or its texts were changed; BadRequest for one whose format loses some,
    unless `lossy` ones are to be compared, too; what `ready` raises for files that lack.
    """
    assert found.request is not None
    with open_regular(path) as file:
        try:
            with Image.open(file, formats=formats.PILLOW_NAMES) as image:
                kind, then = image.format, image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise BadFile(f"{shown(str(path))} is not a whole picture: {error}") from error
    loses = kind != "PNG" and pixels_sha256(then) != found.pixels_sha256
    _check(path, found, then, f"{kind}" if loses else "", lossy)
    wanted = resolve_adapters(model, replace(found.request, model=model.name))
    request = wanted.filled(model.family.defaults)
    tiled = found.origin.environment.get("vae", "").startswith("tiled")
    model.memory.tiling = "on" if tiled else "auto"
    [now] = images_of(model, [request])
    if pixels_sha256(now) != found.pixels_sha256:
        return Verdict(psnr(then, now), reasons(found.origin, origin(model, model.memory.used)))
    if loses:
        return Verdict(psnr(then, now), (f"{kind} loses some; drawn to the bit as it was",))
    return Verdict(math.inf)


def _check(path: Path, found: ImageInfo, then: Image.Image, loses: str, lossy: bool) -> None:
    """Raise BadFile, BadRequest for what need not be drawn again to be judged."""
    name = shown(str(path))
    if loses and not lossy:
        raise BadRequest(f"{name}: {loses} loses some of the pixels; --psnr 30 asks for nearness")
    if not loses and pixels_sha256(then) != found.pixels_sha256:
        raise BadFile(f"{name} was changed: its pixels are not those of its record")
    assert found.request is not None
    texts = metadata(found.request, found.origin, found.pixels_sha256)
    same_writer = found.origin.environment.get("txt2img") == __version__
    if same_writer and found.texts.get("parameters", "").strip() != texts["parameters"].strip():
        raise BadFile(f"{name} was changed: its two texts do not say the same")


def _is_beside(path: Path) -> bool:
    """Whether a picture is a sheet, a step or an animation; what cannot be read is none."""
    try:
        return not {contact_sheet.SHEET, animation.STEP_KEY}.isdisjoint(image_file.read(path).texts)
    except BadFile:
        return False


def psnr(a: Image.Image, b: Image.Image) -> float:
    """The ratio of 255 to two pictures' mean difference, in decibels."""
    one, other = (torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8) for x in (a, b))
    error = float((one.double() - other.double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def reasons(then: Origin, now: Origin) -> tuple[str, ...]:
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
