"""The adapters of a loaded model: which files are open, which are applied, and the originals."""

from dataclasses import dataclass, field

from torch import Tensor

from txt2img.request.adapters import Embedding, Lora, VAERef
from txt2img.request.resolve import AdapterPaths
from txt2img.weights.adapters.lora import Adapter
from txt2img.weights.adapters.textual_inversion import EmbeddingFile
from txt2img.weights.registry.find import SHIPPED

SHIPPED_ONLY = AdapterPaths(model_folders=(SHIPPED,))


@dataclass
class AdapterState:
    """Adapters opened for a model, those applied to it, and the values they replaced."""

    paths: AdapterPaths = SHIPPED_ONLY
    notes: list[str] = field(default_factory=list)  # for the user, once a file
    warnings: list[str] = field(default_factory=list)
    lora_files: dict[str, Adapter] = field(default_factory=dict)
    embedding_files: dict[str, EmbeddingFile] = field(default_factory=dict)
    hashes: dict[tuple[str, str], str] = field(default_factory=dict)  # kind of file, name → hash
    vae: VAERef | None = None  # in place of the model's own, as long as it is loaded
    loras: tuple[Lora, ...] = ()  # applied
    embeddings: tuple[Embedding, ...] = ()  # applied
    originals: dict[tuple[str, str], Tensor] = field(default_factory=dict)  # layer, weight or bias
    token_tables: list[Tensor] = field(default_factory=list)  # of the text encoders' own tokens
