"""Textual inversion files: embedding vectors of a new token (Gal et al. 2022).

Supported are A1111's (`emb_params`), diffusers' (one tensor, named after its token) and those with
a tensor for each of SDXL's text encoders (`clip_l`, `clip_g`; `text_encoders_0` and `_1`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.text_encoder import TextEncoder
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats import tensors as reading
from txt2img.weights.formats.safetensors_file import NAME_MAX, TensorRef
from txt2img.weights.layouts.components import first_names

A1111 = "emb_params"
XL = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
GENERIC = (A1111, "*", "string_to_param.*", *XL[0], *XL[1])  # names that are no token


@dataclass(frozen=True)
class EmbeddingFile:
    """An embedding file, one tensor of vectors for each text encoder of the model."""

    parts: tuple[tuple[str, TensorRef], ...]

    def read(self) -> list[Tensor]:
        """Read the vectors (N, D) of each encoder. Raises MissingWeights, BadFile."""
        values = reading.read(dict(self.parts), torch.device("cpu"), torch.float32)
        return [values[name].reshape(-1, ref.shape[-1]) for name, ref in self.parts]


def open_embedding(path: Path, encoders: Sequence[TextEncoder]) -> EmbeddingFile:
    """Check a file against the model's text encoders, without reading its vectors.

    Raises BadFile, UnknownLayout for other files, MissingWeights for vectors of another width.
    """
    widths = [encoder.config.width for encoder in encoders]
    parts = _parts(path, safetensors_file.header(path).tensors, len(encoders))
    for (name, ref), encoder in zip(parts, encoders, strict=True):
        width, most = encoder.config.width, encoder.config.length - 2
        count = ref.shape[0] if len(ref.shape) == 2 else 1
        where = f"{path.name}: {shown(name, NAME_MAX)}"
        if len(ref.shape) not in (1, 2) or ref.shape[-1] != width:
            needed = " and ".join(map(str, widths))
            raise MissingWeights(
                f"{where} has the shape {ref.shape}; this model takes vectors of width {needed}"
            )
        if not 1 <= count <= most:
            raise MissingWeights(
                f"{where} has {count} vectors; a prompt's chunk has room for {most}"
            )
    return EmbeddingFile(tuple(parts))


def word_of(path: Path) -> str:
    """The token that a file's only tensor is named after, else the file's name. Raises BadFile."""
    names = list(safetensors_file.header(path).tensors)
    own = path.name.removesuffix(".safetensors")
    return names[0] if len(names) == 1 and names[0] not in GENERIC else own


def _parts(
    path: Path, tensors: dict[str, TensorRef], encoders: int
) -> Sequence[tuple[str, TensorRef]]:
    """The tensor of each encoder, in order. Raises UnknownLayout."""
    if encoders == 1 and len(tensors) == 1:
        return list(tensors.items())
    for pair in XL:
        if encoders == len(pair) and set(tensors) == set(pair):
            return [(name, tensors[name]) for name in pair]
    some = first_names(list(tensors))
    kind = "clip_l and clip_g" if encoders > 1 else "one tensor of vectors"
    raise UnknownLayout(
        f"{path.name} is no embedding for this model: it contains {some}; {kind} is needed"
    )
