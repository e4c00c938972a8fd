"""Textual inversion files: embedding vectors of a new token (Gal et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from txt2img.models.clip import TextEncoder
from txt2img.weights.adapters.file_layout import vectors_of
from txt2img.weights.formats import tensors as reading
from txt2img.weights.formats.safetensors_file import TensorRef


@dataclass(frozen=True)
class EmbeddingFile:
    """An embedding file, one tensor of vectors for each text encoder of the model."""

    parts: tuple[tuple[str, TensorRef], ...]

    def read(self) -> list[Tensor]:
        """Read the vectors (N, D) of each encoder. Raises MissingWeights, BadFile."""
        values = reading.read(dict(self.parts), torch.device("cpu"), torch.float32)
        return [values[name].reshape(-1, ref.shape[-1]) for name, ref in self.parts]


def open_embedding(path: Path, encoders: Sequence[TextEncoder], word: str = "") -> EmbeddingFile:
    """Check a file against the model's text encoders, without reading its vectors.

    The file may be a LoRA that bundles a word.
    Raises BadFile, UnknownLayout for other files, MissingWeights for vectors of another width.
    """
    configs = [encoder.config for encoder in encoders]
    return EmbeddingFile(tuple(vectors_of(path, configs, word)))
