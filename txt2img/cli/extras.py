"""LoRAs, learnt words and a VAE from the command line: which files, how strongly."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from txt2img.cli import options
from txt2img.cli.likeness import Likeness
from txt2img.errors import BadRequest
from txt2img.escape import shown
from txt2img.extras import Embedding, Lora, weight
from txt2img.library import SUFFIX, Library, checked_file, checked_folder

LORAS = "TXT2IMG_LORAS"  # the environment's name for folders of LoRAs
NONE = "none"  # the VAE of a model that keeps its own
_WEIGHT = r"(?::([-+.\deE]+))?"
_LORA = re.compile(f"(.+?){_WEIGHT}{_WEIGHT}", re.DOTALL)


@dataclass(frozen=True)
class Named(Likeness):
    """What the options for other files than the model's ask for, and for other programs' rules."""

    lora: options.Loras = None
    lora_dir: options.LoraFolders = None
    embedding: options.Embeddings = None
    embedding_dir: options.EmbeddingFolders = None
    vae: options.VAE = None
    profile: options.Profile = None  # its options are read before: cli/configured.py

    def given(self) -> dict[str, object]:
        """What the options say of a request, by its fields. BadRequest."""
        values = super().given()
        if self.lora:
            values["loras"] = [asdict(lora) for lora, _ in map(lora_file, self.lora)]
        if self.vae == NONE:
            values["vae"] = None
        return values

    def library(self) -> Library:
        """The files and folders that the options name. BadRequest."""
        loras: dict[str, Path] = {}
        for lora, path in map(lora_file, self.lora or ()):
            if loras.setdefault(lora.name, path) != path:
                raise BadRequest(f"--lora: two files are called {shown(lora.name)}; rename one")
        own = [folder for folder in os.environ.get(LORAS, "").split(os.pathsep) if folder]
        return Library(
            loras,
            (
                *(checked_folder("--lora-dir", Path(text)) for text in self.lora_dir or ()),
                *(checked_folder(LORAS, Path(text).expanduser()) for text in own),
            ),
            dict(embedding_file(text) for text in self.embedding or ()),
            tuple(checked_folder("--embedding-dir", Path(t)) for t in self.embedding_dir or ()),
            None if self.vae == NONE else self.vae,
        )


def lora_file(text: str) -> tuple[Lora, Path]:
    """What FILE[:W[:TE]] means. BadRequest."""
    match = _LORA.fullmatch(text)
    if match is None:
        raise BadRequest(f"--lora takes FILE[:W[:TE]], got {shown(text)}")
    path = checked_file("--lora", Path(match[1]))
    unet = weight(match[2] or "1", path.name)
    name = path.name.removesuffix(SUFFIX)
    return Lora(name, unet, unet if match[3] is None else weight(match[3], path.name)), path


def embedding_file(text: str) -> tuple[str, Path]:
    """What FILE[:WORD] means: the word and its file. BadRequest, BadFile."""
    file, _, word = text.rpartition(":")
    if Path(text).exists() or not file:
        from txt2img.weights.embeddings import word_of

        path = checked_file("--embedding", Path(text))
        word = word_of(path)
    else:
        path = checked_file("--embedding", Path(file))
    return Embedding(word).token, path
