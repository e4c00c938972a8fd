"""Names in requests → files: LoRAs and embeddings given singly or in folders."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from txt2img.errors import BadFile, BadRequest, ModelNotFound
from txt2img.request.adapters import (
    Embedding,
    find_words,
    strip_embedding_prefixes,
    strip_lora_tags,
)
from txt2img.request.hires import check_hires
from txt2img.request.input_image import ImagePaths
from txt2img.request.request import Request
from txt2img.request.sampler_names import Compat
from txt2img.request.upscalers import OF_PIXELS, UpscalerRef
from txt2img.system.files import cannot_read, entries, walk
from txt2img.system.text import shown

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ComponentOverrides:
    """Paths of networks used in place of a model's own: they make another model."""

    unet: str | None = None
    texts: tuple[str, ...] = ()


NO_OVERRIDES = ComponentOverrides()


@dataclass(frozen=True)
class AdapterPaths:
    """Files by the names that requests use; a file given singly comes before folders."""

    loras: Mapping[str, Path] = field(default_factory=dict)
    lora_folders: tuple[Path, ...] = ()
    embeddings: Mapping[str, Path] = field(default_factory=dict)
    embedding_folders: tuple[Path, ...] = ()
    vae: str | None = None  # path of the VAE used in place of the model's own
    refiner: str | None = None  # path of the model that draws the last steps
    overrides: ComponentOverrides = NO_OVERRIDES
    model_folders: tuple[Path, ...] = ()  # where LoRAs may be too, and upscalers
    images: ImagePaths = field(default_factory=ImagePaths)  # pictures to begin from
    upscalers: Mapping[str, Path] = field(default_factory=dict)
    bundled: dict[str, Path] = field(default_factory=dict)  # LoRAs by the learnt words they hold
    controls: dict[str, Path] = field(default_factory=dict)  # those found so far
    annotators: dict[str, Path] = field(default_factory=dict)  # likewise, of preprocessors
    ip_adapters: dict[str, Path] = field(default_factory=dict)  # likewise
    ip_encoders: tuple[str, ...] = ()  # paths of the image encoders of IP-Adapters

    def lora_file(self, name: str) -> Path:
        """The file of a LoRA. ModelNotFound lists the folders that were searched."""
        if name in self.loras:
            return self.loras[name]
        folders = (*self.lora_folders, *self.model_folders)
        path = next((path for folder in folders if (path := find_below(folder, name))), None)
        if path is None:
            raise ModelNotFound(_missing("LoRA", name, self.lora_folders, "--lora"))
        return path

    def upscaler_file(self, ref: UpscalerRef) -> Path:
        """The file of an upscaler. ModelNotFound."""
        if ref.name in self.upscalers:
            return self.upscalers[ref.name]
        below = (find_below(folder, ref.name) for folder in self.model_folders)
        if (path := next(filter(None, below), None)) is None:
            raise ModelNotFound(
                f"no upscaler {shown(ref.name)} in the folders of TXT2IMG_MODELS and config.toml; "
                "put it there, or give another with --upscale or --hires-upscaler"
            )
        return path

    def check_upscaler(self, request: Request) -> None:
        """Raise BadRequest, ModelNotFound for an upscaler that is none of pictures, or not here."""
        how = None if request.upscale is None else request.upscale.interpolation
        if how is not None and how.of_latents:
            raise BadRequest(f"{how} enlarges latents; upscale takes {', '.join(OF_PIXELS)}")
        for ref in (request.upscale, request.hires_upscaler):
            if ref is not None and ref.interpolation is None:
                self.upscaler_file(ref)

    def embedding_files(self) -> dict[str, Path]:
        """Every embedding's word and its file."""
        folders = reversed(self.embedding_folders)  # the first folder given wins
        paths = [
            path for folder in folders for path in entries(folder) if path.name.endswith(SUFFIX)
        ]
        return {path.name.removesuffix(SUFFIX): path for path in paths} | dict(self.embeddings)

    def embedding_file(self, token: str) -> Path:
        """The file of an embedding. ModelNotFound lists the folders that were searched."""
        if (path := self.embedding_files().get(token, self.bundled.get(token))) is None:
            folders = self.embedding_folders
            raise ModelNotFound(_missing("embedding", token, folders, "--embedding"))
        return path

    def resolve(self, request: Request) -> Request:
        """The request with its `<lora:…>` tags as LoRAs, and the embeddings that its prompts use.

        Recorded hashes are kept. ModelNotFound if a file is missing, BadRequest for a tag.
        """
        prompt, tagged = strip_lora_tags(request.prompt)
        recorded = {embedding.token: embedding for embedding in request.embeddings}
        known = self.embedding_files() if self.embeddings or self.embedding_folders else {}
        negative = request.negative
        if request.compat is Compat.COMFYUI:
            prompt, words = strip_embedding_prefixes(prompt)
            negative, negative_words = strip_embedding_prefixes(negative)
            recorded = {word: Embedding(word) for word in (*words, *negative_words)} | recorded
        text = f"{prompt}\n{negative}"
        used = []
        for token in dict.fromkeys([*recorded, *sorted(known)]):
            if any(find_words([token], text)):
                if not (request.loras or tagged):  # which may bring the word along
                    self.embedding_file(token)
                used.append(recorded.get(token, Embedding(token)))
        for option, ref, path in (
            ("vae", request.vae, self.vae),
            ("refiner", request.refiner, self.refiner),
        ):
            if ref is not None and path is None:
                raise ModelNotFound(
                    f"the request names {ref.what}, {shown(ref.name)}; give its file with "
                    f"--{option}, or --{option} none"
                )
        loras, embeddings = (*request.loras, *tagged), tuple(used)
        for lora in loras:
            self.lora_file(lora.name)
        if request.has_hires:
            check_hires(request)
        self.check_upscaler(request)
        return request.changed(prompt=prompt, negative=negative, loras=loras, embeddings=embeddings)


def find_below(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder or in one inside it, the first in alphabetical order.

    BadFile if it is in none of them, and one cannot be read.
    """
    if os.path.isfile(folder / f"{name}{SUFFIX}"):
        return folder / f"{name}{SUFFIX}"
    unreadable: list[OSError] = []
    *above, last = f"{name}{SUFFIX}".split("/")
    deeper = [
        at / last
        for at, _, files in walk(folder, unreadable)
        if last in files and at.parts[len(at.parts) - len(above) :] == tuple(above)
    ]
    if not deeper and unreadable:
        raise BadFile(f"no file {shown(name)} was found, but {cannot_read(unreadable)[0]}")
    return min(filter(os.path.isfile, deeper), default=None)


def require_folder(option: str, folder: Path) -> Path:
    """The folder, if it is one. ModelNotFound if nothing is there, else BadRequest."""
    if not folder.exists():
        raise ModelNotFound(f"{option}: no folder {shown(folder)}")
    if not folder.is_dir():
        raise BadRequest(f"{option}: {shown(folder)} is not a folder")
    return folder


def _missing(what: str, name: str, folders: tuple[Path, ...], option: str) -> str:
    places = ", ".join(shown(folder) for folder in folders)
    where = f" in {places}" if folders else ""
    advice = f"give its file with {option} or its folder with {option}-dir"
    return f"no {what} {shown(name)}{where}; {advice}"
