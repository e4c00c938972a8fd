"""Draw a picture again from its record and compare the pixels."""

import math
import os
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
from txt2img.request.hires import written_size
from txt2img.system.files import entries, open_regular
from txt2img.system.text import shown
from txt2img.system.version import __version__
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.model import Model, origin


@dataclass(frozen=True)
class Verdict:
    """The difference between a picture and the one drawn now from its record."""

    psnr: float  # decibels; infinite if they are the same
    reasons: tuple[str, ...] = ()  # what may explain a difference

    @property
    def same(self) -> bool:
        """Whether every pixel is the same."""
        return math.isinf(self.psnr)


def read_verifiable(path: Path) -> ImageInfo:
    """Read a picture's record, if it suffices to verify it. BadFile, BadRequest."""
    info = image_file.read(path)
    if info.request is None or not info.pixels_sha256:
        raise BadRequest(f"{shown(path)} has no hash of its pixels: txt2img did not write it")
    whole = info.request.only_masked is None  # else it has its start's size, which is not recorded
    if whole and (info.width, info.height) != written_size(info.request):
        raise BadFile(f"{shown(path)} was changed: it has not the size that its record says")
    return info


def list_pictures(name: str) -> list[str]:
    """The picture of that name, or all in that folder but sheets and steps. BadFile, BadRequest."""
    if not os.path.isdir(name):
        return [name]
    paths = [path for path in entries(Path(name)) if path.name[:1] != "."]
    names = [str(path) for path in paths if formats.by_suffix(path.name) and _is_picture(path)]
    if not names:
        raise BadRequest(f"{shown(name)} has no pictures")
    return names


def verify(path: Path, info: ImageInfo, model: Model, lossy: bool = False) -> Verdict:
    """Draw a picture again and compare.

    Raises BadFile if its pixels or its texts were changed, BadRequest for a lossy format unless
    `lossy`, and as `resolve_adapters` for missing files.
    """
    assert info.request is not None
    if formats.by_suffix(path.name) is formats.SVG:
        raise BadRequest(
            f"{shown(path)} is traced into shapes, which no pixels can be compared with; "
            "replay draws it again"
        )
    with open_regular(path) as file:
        try:
            with (
                image_file.pillow_errors(),
                Image.open(file, formats=formats.PILLOW_NAMES) as image,
            ):
                mode = "RGBA" if image.has_transparency_data else "RGB"
                kind, then = image.format, image.convert(mode)
        except ValueError as error:
            raise BadFile(f"{shown(path)} is not a whole picture: {error}") from error
    is_lossy = kind != "PNG" and pixels_sha256(then) != info.pixels_sha256
    _check(path, info, then, f"{kind}" if is_lossy else "", lossy)
    request = resolve_adapters(model, replace(info.request, model=model.name))
    tiled = info.origin.environment.get("vae", "").startswith("tiled")
    model.memory.tiling = "on" if tiled else "auto"
    [now] = images_of(model, [request.filled(model.family.defaults)])
    if pixels_sha256(now) != info.pixels_sha256:
        return Verdict(psnr(then, now), differences(info.origin, origin(model, model.memory.used)))
    if is_lossy:
        return Verdict(
            psnr(then, now), (f"{kind} is lossy; before encoding, the pixels are identical",)
        )
    return Verdict(math.inf)


def _check(path: Path, info: ImageInfo, then: Image.Image, lossy_kind: str, lossy: bool) -> None:
    """Raise BadFile, BadRequest for what can be judged without drawing it again."""
    name = shown(path)
    if lossy_kind and not lossy:
        raise BadRequest(f"{name}: {lossy_kind} is lossy, so it cannot be identical; try --psnr 30")
    if not lossy_kind and pixels_sha256(then) != info.pixels_sha256:
        raise BadFile(f"{name} was changed: its pixels are not those of its record")
    assert info.request is not None
    texts = metadata(info.request, info.origin, info.pixels_sha256)
    same_writer = info.origin.environment.get("txt2img") == __version__
    if same_writer and info.texts.get("parameters", "").strip() != texts["parameters"].strip():
        raise BadFile(f"{name} was changed: its two texts do not say the same")


def _is_picture(path: Path) -> bool:
    """False for a sheet, a step or an animation; True for what cannot be read, too."""
    try:
        return {contact_sheet.SHEET, animation.STEP_KEY}.isdisjoint(image_file.read(path).texts)
    except BadFile:
        return True


def psnr(a: Image.Image, b: Image.Image) -> float:
    """The peak signal-to-noise ratio of two pictures, in decibels."""
    one, other = (torch.frombuffer(bytearray(x.tobytes()), dtype=torch.uint8) for x in (a, b))
    error = float((one.double() - other.double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def differences(then: Origin, now: Origin) -> tuple[str, ...]:
    """The differences between two origins, in words; if there are none, what else it may be."""
    shipped = then.model == now.model == "default"  # with weights that come with the program
    old, new = dict(then.environment), dict(now.environment)
    threads = old.pop("threads", ""), new.pop("threads", "")
    names = dict.fromkeys([*new, *old])
    rows = [("default model" if shipped else "model", then.hash, now.hash)]
    if then.config:  # earlier versions recorded none, nor threads
        rows.append(("the model's configs and tokenizers", then.config, now.config))
    rows += [(name, old.get(name, ""), new.get(name, "")) for name in names]
    changed = [f"{name} {a or 'unknown'} then, {b or 'none'} now" for name, a, b in rows if a != b]
    if all(threads) and threads[0] != threads[1]:
        changed.append(f"another number of threads: {threads[0]} then, {threads[1]} now")
    return tuple(changed) or ("nothing that the record tells: another processor, or threads",)
