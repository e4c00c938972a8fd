"""Where the files are that requests name: LoRAs and learnt words, singly or in folders."""

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from txt2img.errors import BadRequest, ModelNotFound
from txt2img.request.adapters import Embedding, find_words, strip_lora_tags
from txt2img.request.request import Request
from txt2img.system.text import shown

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ComponentOverrides:
    """Where networks are that are used in place of a model's own: they make another model."""

    unet: str | None = None
    texts: tuple[str, ...] = ()


NO_OVERRIDES = ComponentOverrides()


@dataclass(frozen=True)
class AdapterPaths:
    """Files by the names that requests call them; a file given by itself comes before folders."""

    loras: Mapping[str, Path] = field(default_factory=dict)
    lora_folders: tuple[Path, ...] = ()
    embeddings: Mapping[str, Path] = field(default_factory=dict)
    embedding_folders: tuple[Path, ...] = ()
    vae: str | None = None  # where the VAE is that is used in place of the model's own
    refiner: str | None = None  # where the model is that draws the last steps
    parts: ComponentOverrides = NO_OVERRIDES
    model_folders: tuple[Path, ...] = ()  # where LoRAs may be too

    def lora(self, name: str) -> Path:
        """The file of a LoRA. ModelNotFound says where it was looked for."""
        if name in self.loras:
            return self.loras[name]
        folders = (*self.lora_folders, *self.model_folders)
        found = next((path for folder in folders if (path := find_below(folder, name))), None)
        if found is None:
            raise ModelNotFound(_missing("LoRA", name, self.lora_folders, "--lora"))
        return found

    def words(self) -> dict[str, Path]:
        """Every learnt word and its file."""
        folders = reversed(self.embedding_folders)  # the first folder given wins
        files = [path for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}"))]
        return {path.name.removesuffix(SUFFIX): path for path in files} | dict(self.embeddings)

    def embedding(self, token: str) -> Path:
        """The file of a learnt word. ModelNotFound says where it was looked for."""
        if (path := self.words().get(token)) is None:
            folders = self.embedding_folders
            raise ModelNotFound(_missing("embedding", token, folders, "--embedding"))
        return path

    def resolved(self, request: Request) -> Request:
        """The request with the prompt's tags as LoRAs and the learnt words of both prompts named.

        Recorded hashes are kept. ModelNotFound if a file is not there, BadRequest for a tag.
        """
        prompt, tags = strip_lora_tags(request.prompt)
        recorded = {embedding.token: embedding for embedding in request.embeddings}
        known = self.words() if self.embeddings or self.embedding_folders else {}
        text = f"{prompt}\n{request.negative}"
        used = []
        for token in dict.fromkeys([*recorded, *sorted(known)]):
            if any(find_words([token], text)):
                self.embedding(token)
                used.append(recorded.get(token, Embedding(token)))
        if request.vae is not None and self.vae is None:
            name = shown(request.vae.name)
            raise ModelNotFound(f"the VAE {name} is wanted; give it with --vae, or --vae none")
        if request.refiner is not None and self.refiner is None:
            name = shown(request.refiner.name)
            raise ModelNotFound(
                f"the refiner {name} is wanted; give it with --refiner, or --refiner none"
            )
        loras, embeddings = (*request.loras, *tags), tuple(used)
        for lora in loras:
            self.lora(lora.name)
        if (prompt, loras, embeddings) == (request.prompt, request.loras, request.embeddings):
            return request
        return replace(request, prompt=prompt, loras=loras, embeddings=embeddings)


def find_below(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder or in one inside it, the first in alphabetical order."""
    if (folder / f"{name}{SUFFIX}").is_file():
        return folder / f"{name}{SUFFIX}"
    deeper = sorted(folder.rglob(f"{glob.escape(name)}{SUFFIX}"))
    return next((path for path in deeper if path.is_file()), None)


def require_folder(option: str, folder: Path) -> Path:
    """The folder, which must be one. ModelNotFound if nothing is there, else BadRequest."""
    if not folder.exists():
        raise ModelNotFound(f"{option}: no folder {shown(str(folder))}")
    if not folder.is_dir():
        raise BadRequest(f"{option}: {shown(str(folder))} is not a folder")
    return folder


def _missing(what: str, name: str, folders: tuple[Path, ...], option: str) -> str:
    places = ", ".join(shown(str(folder)) for folder in folders)
    where = f" in {places}" if folders else ""
    advice = f"give its file with {option} or its folder with {option}-dir"
    return f"no {what} {shown(name)}{where}; {advice}"
