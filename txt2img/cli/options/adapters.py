"""Options for LoRAs, embeddings, a VAE, a refiner and other weights than the model's own."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from txt2img.cli.options import completion
from txt2img.cli.options.types import field_option
from txt2img.errors import BadRequest
from txt2img.request.adapters import Embedding, Lora, parse_weight
from txt2img.request.resolve import SUFFIX, AdapterPaths, ComponentOverrides, require_folder
from txt2img.system.files import expand_user
from txt2img.system.text import shown

LORAS = "TXT2IMG_LORAS"  # environment variable: folders of LoRAs
NONE = "none"  # --vae none and --refiner none undo what a picture says
_WEIGHT = r"(?::([-+.\deE]+))?"
_REFINER = re.compile(r"(.+):(\d*\.?\d+|\d+\.)", re.DOTALL | re.ASCII)
_LORA = re.compile(f"(.+?){_WEIGHT}{_WEIGHT}", re.DOTALL)

VAE = Annotated[
    str | None,
    field_option(
        "vae",
        metavar="NAME|PATH",
        autocompletion=completion.known_models,
        help="Use another VAE; none restores the model's own.",
    ),
]


@dataclass(frozen=True)
class AdapterOptions:
    """Options for adapters and other weights to load besides the model's own."""

    section: ClassVar = "LoRAs, embeddings and other weights"

    lora: Annotated[
        list[str] | None,
        field_option(
            "loras",
            metavar="FILE[:W[:TE]]",
            autocompletion=completion.known_models,
            help="Apply a LoRA, by file or name, with weight W (1), for the text encoder TE (W). "
            "Repeatable; <lora:name:W> in a prompt does the same.",
        ),
    ] = None
    lora_dir: Annotated[
        list[str] | None,
        typer.Option(
            "--lora-dir",
            metavar="DIR",
            help="Where to find the files of <lora:name>, besides TXT2IMG_LORAS. Repeatable.",
        ),
    ] = None
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding",
            metavar="FILE[:WORD]",
            autocompletion=completion.known_models,
            help="Load a textual-inversion embedding, used as WORD in prompts (default: the file's "
            "name). Repeatable.",
        ),
    ] = None
    embedding_dir: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding-dir",
            metavar="DIR",
            help="Load a folder's embeddings, each used as its file's name. Repeatable.",
        ),
    ] = None
    vae: VAE = None
    refiner: Annotated[
        str | None,
        field_option(
            "refiner",
            metavar="MODEL[:SWITCH]",
            autocompletion=completion.known_models,
            help="Draw the last steps with another model, such as SDXL's refiner, from fraction "
            "SWITCH (0.8) of the way on; none disables it.",
        ),
    ] = None
    unet: Annotated[
        str | None,
        typer.Option(
            "--unet",
            metavar="NAME|PATH",
            autocompletion=completion.known_models,
            help="Use another U-Net or transformer, from a checkpoint, a diffusers folder or a "
            "file of its own.",
        ),
    ] = None
    text_encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--text-encoder",
            metavar="NAME|PATH",
            autocompletion=completion.known_models,
            help="Use another text encoder, likewise; which of SDXL's two it is, is detected. "
            "Repeatable.",
        ),
    ] = None

    def library(self) -> AdapterPaths:
        """Find the files and folders. ModelNotFound, BadRequest."""
        from txt2img.weights.registry.find import folders

        loras: dict[str, Path] = {}
        for lora, path in map(lora_file, self.lora or ()):
            if loras.setdefault(lora.name, path) != path:
                raise BadRequest(f"--lora: two files are called {shown(lora.name)}; rename one")
        named_folders = [folder for folder in os.environ.get(LORAS, "").split(os.pathsep) if folder]
        return AdapterPaths(
            loras,
            (
                *(require_folder("--lora-dir", Path(text)) for text in self.lora_dir or ()),
                *(require_folder(LORAS, expand_user(text)) for text in named_folders),
            ),
            dict(embedding_file(text) for text in self.embedding or ()),
            tuple(require_folder("--embedding-dir", Path(t)) for t in self.embedding_dir or ()),
            None if self.vae in (None, NONE) else find_or_fail("--vae", self.vae),
            None if self.refiner in (None, NONE) else parse_refiner(self.refiner)[0],
            ComponentOverrides(
                None if self.unet is None else find_or_fail("--unet", self.unet),
                tuple(find_or_fail("--text-encoder", text) for text in self.text_encoder or ()),
            ),
            tuple(folder for folder in folders() if folder.is_dir()),
        )

    def request_fields(self) -> dict[str, object]:
        """The given options as fields of a request. ModelNotFound, BadRequest."""
        values: dict[str, object] = {}
        if self.lora:
            values["loras"] = [asdict(lora) for lora, _ in map(lora_file, self.lora)]
        if self.vae == NONE:
            values["vae"] = None
        if self.refiner == NONE:
            values["refiner"] = None
        elif self.refiner and (switch := parse_refiner(self.refiner)[1]) is not None:
            values["refiner_switch"] = switch
        return values


def find_or_fail(option: str, name: str) -> str:
    """The file or folder of a path or name. ModelNotFound, BadRequest."""
    from txt2img.weights.registry.find import find_file

    return str(find_file(option, name))


def parse_refiner(text: str) -> tuple[str, float | None]:
    """Parse MODEL[:SWITCH]. BadRequest."""
    match = _REFINER.fullmatch(text)
    if match is None or os.path.lexists(text):
        return text, None
    switch = float(match[2])
    if switch > 1:
        raise BadRequest(f"--refiner {shown(text)}: SWITCH is a fraction of the way, 0 … 1")
    return match[1], switch


def lora_file(text: str) -> tuple[Lora, Path]:
    """Parse FILE[:W[:TE]] and find the file. ModelNotFound, BadRequest."""
    match = _LORA.fullmatch(text)
    if match is None:
        raise BadRequest(f"--lora takes FILE[:W[:TE]], got {shown(text)}")
    head, _, rest = match[1].partition(":")
    if rest and len(head) > 1 and not rest.endswith(SUFFIX) and not os.path.lexists(match[1]):
        raise BadRequest(f"--lora {shown(text)}: weights are numbers; write {head}:0.8")
    path = Path(find_or_fail("--lora", match[1]))
    unet = parse_weight(match[2] or "1", path.name)
    # A short name is kept, since files pulled from the Hub are often called the same.
    is_name = not os.path.lexists(match[1]) and not re.search(r'[:<>/\\"@]', match[1])
    name = (match[1] if is_name else path.name).removesuffix(SUFFIX)
    return Lora(name, unet, unet if match[3] is None else parse_weight(match[3], path.name)), path


def embedding_file(text: str) -> tuple[str, Path]:
    """Parse FILE[:WORD] into the word and its file. ModelNotFound, BadRequest, BadFile."""
    file, _, word = text.rpartition(":")
    if os.path.lexists(text) or not file:
        from txt2img.weights.adapters.file_layout import word_of

        path = Path(find_or_fail("--embedding", text))
        word = word_of(path)
    else:
        path = Path(find_or_fail("--embedding", file))
    return Embedding(word).token, path
