"""Upscalers as requests name them: interpolations of latents or of pixels, or a model's file."""

import re
from dataclasses import dataclass
from pathlib import PurePath

from txt2img.errors import BadRequest
from txt2img.request.adapters import FileRef
from txt2img.request.sampler_names import Name, NameRow
from txt2img.system.text import shown

SUFFIX = ".safetensors"
SCALE_MAX = 16.0
_SCALED = re.compile(r"(.+):(\d+\.?\d*|\.\d+)x?", re.DOTALL | re.ASCII)


class Interpolation(Name):
    """Upscalers without a file, by A1111's labels."""

    LATENT = NameRow("latent", "Latent", ("latent-bilinear",))
    LATENT_ANTIALIASED = NameRow(
        "latent-antialiased", "Latent (antialiased)", ("Latent (antialiased)",)
    )
    LATENT_BICUBIC = NameRow("latent-bicubic", "Latent (bicubic)", ("Latent (bicubic)",))
    LATENT_BICUBIC_ANTIALIASED = NameRow(
        "latent-bicubic-antialiased",
        "Latent (bicubic antialiased)",
        ("Latent (bicubic antialiased)",),
    )
    LATENT_NEAREST = NameRow("latent-nearest", "Latent (nearest)", ("Latent (nearest)",))
    LATENT_NEAREST_EXACT = NameRow(
        "latent-nearest-exact", "Latent (nearest-exact)", ("Latent (nearest-exact)",)
    )
    LANCZOS = NameRow("lanczos", "Lanczos")
    BICUBIC = NameRow("bicubic", "Bicubic")
    NEAREST = NameRow("nearest", "Nearest")

    @property
    def of_latents(self) -> bool:
        """Whether it enlarges latents, before the decoder, and not pixels."""
        return self.value.startswith("latent")


OF_PIXELS = tuple(one.value for one in Interpolation if not one.of_latents)


@dataclass(frozen=True)
class UpscalerRef(FileRef):
    """An upscaler: an interpolation's name, or that of a model's file and its hash."""

    what = "an upscaler"

    def __str__(self) -> str:
        return self.name

    @property
    def interpolation(self) -> Interpolation | None:
        """The interpolation that it names; None for a model's file."""
        return next((one for one in Interpolation if one.value == self.name), None)

    @property
    def label(self) -> str:
        """The name in A1111's texts."""
        return self.interpolation.label if self.interpolation else self.name


def parse_upscaler(text: str) -> UpscalerRef:
    """The upscaler of a name or a file's path. BadRequest."""
    try:
        return UpscalerRef(Interpolation.parse(text).value)
    except BadRequest:
        return UpscalerRef(PurePath(text).name.removesuffix(SUFFIX))


def upscaler_from_json(value: object) -> UpscalerRef:
    """An upscaler from a JSON value: its name, or an object with its name and hash. BadRequest."""
    if isinstance(value, str):
        return parse_upscaler(value)
    if isinstance(value, dict) and {*value} <= {"name", "hash"} and "name" in value:
        return UpscalerRef(**value)
    raise BadRequest(f"{shown(value)} is no upscaler: give its name")


def split_scale(text: str) -> tuple[str, float | None]:
    """Split NAME[:SCALE] into the name and the scale; None if there is none."""
    match = _SCALED.fullmatch(text)
    return (match[1], float(match[2])) if match else (text, None)
