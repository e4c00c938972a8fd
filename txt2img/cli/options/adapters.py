"""LoRAs, learnt words, a VAE and a refiner from the command line: which files, how strongly."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from txt2img.cli.options import types
from txt2img.cli.options.compat import CompatOptions
from txt2img.cli.options.speed import SpeedOptions
from txt2img.errors import BadRequest
from txt2img.request.adapters import Embedding, Lora, parse_weight
from txt2img.request.resolve import SUFFIX, AdapterPaths, ComponentOverrides, require_folder
from txt2img.system.text import shown

LORAS = "TXT2IMG_LORAS"  # the environment's name for folders of LoRAs
NONE = "none"  # the VAE of a model that keeps its own, the refiner of one that draws alone
_WEIGHT = r"(?::([-+.\deE]+))?"
_REFINER = re.compile(r"(.+):(\d*\.?\d+|\d+\.)", re.DOTALL | re.ASCII)
_LORA = re.compile(f"(.+?){_WEIGHT}{_WEIGHT}", re.DOTALL)


@dataclass(frozen=True)
class AdapterFileOptions:
    """Which other files than the model's are asked for."""

    lora: types.Loras = None
    lora_dir: types.LoraFolders = None
    embedding: types.Embeddings = None
    embedding_dir: types.EmbeddingFolders = None
    vae: types.VAE = None
    refiner: types.RefinerName = None
    unet: types.UNetFile = None
    text_encoder: types.TextEncoders = None

    def library(self) -> AdapterPaths:
        """The files and folders that the options name. ModelNotFound, BadRequest."""
        from txt2img.weights.registry.find import folders

        loras: dict[str, Path] = {}
        for lora, path in map(lora_file, self.lora or ()):
            if loras.setdefault(lora.name, path) != path:
                raise BadRequest(f"--lora: two files are called {shown(lora.name)}; rename one")
        own = [folder for folder in os.environ.get(LORAS, "").split(os.pathsep) if folder]
        return AdapterPaths(
            loras,
            (
                *(require_folder("--lora-dir", Path(text)) for text in self.lora_dir or ()),
                *(require_folder(LORAS, Path(text).expanduser()) for text in own),
            ),
            dict(embedding_file(text) for text in self.embedding or ()),
            tuple(require_folder("--embedding-dir", Path(t)) for t in self.embedding_dir or ()),
            None if self.vae in (None, NONE) else find_or_fail("--vae", self.vae),
            None if self.refiner in (None, NONE) else refiner(self.refiner)[0],
            ComponentOverrides(
                None if self.unet is None else find_or_fail("--unet", self.unet),
                tuple(find_or_fail("--text-encoder", text) for text in self.text_encoder or ()),
            ),
            tuple(folder for folder in folders() if folder.is_dir()),
        )


@dataclass(frozen=True)
class AdapterOptions(AdapterFileOptions, CompatOptions, SpeedOptions):
    """What the options for other files than the model's ask for, and for other programs' rules."""

    profile: types.Profile = None  # its options are read before: cli/configured.py

    def request_fields(self) -> dict[str, object]:
        """What the options say of a request, by its fields. BadRequest."""
        values = types.given_fields(self)
        if self.lora:
            values["loras"] = [asdict(lora) for lora, _ in map(lora_file, self.lora)]
        if self.vae == NONE:
            values["vae"] = None
        if self.refiner == NONE:
            values["refiner"] = None
        elif self.refiner and (switch := refiner(self.refiner)[1]) is not None:
            values["refiner_switch"] = switch
        return values


def find_or_fail(option: str, name: str) -> str:
    """Where the file or folder of that path or name is. ModelNotFound, BadRequest."""
    from txt2img.weights.registry.find import find_file

    return str(find_file(option, name))


def refiner(text: str) -> tuple[str, float | None]:
    """What MODEL[:SWITCH] means. BadRequest."""
    match = _REFINER.fullmatch(text)
    if match is None or os.path.lexists(text):
        return text, None
    switch = float(match[2])
    if switch > 1:
        raise BadRequest(f"--refiner {shown(text)}: it takes over after a part of 0 … 1 of the way")
    return match[1], switch


def lora_file(text: str) -> tuple[Lora, Path]:
    """What FILE[:W[:TE]] means. ModelNotFound, BadRequest."""
    match = _LORA.fullmatch(text)
    if match is None:
        raise BadRequest(f"--lora takes FILE[:W[:TE]], got {shown(text)}")
    path = Path(find_or_fail("--lora", match[1]))
    unet = parse_weight(match[2] or "1", path.name)
    # A name tells files apart whose own names are all the same, as those on the Hub are.
    plain = not os.path.lexists(match[1]) and not re.search(r'[:<>/\\"@]', match[1])
    name = (match[1] if plain else path.name).removesuffix(SUFFIX)
    return Lora(name, unet, unet if match[3] is None else parse_weight(match[3], path.name)), path


def embedding_file(text: str) -> tuple[str, Path]:
    """What FILE[:WORD] means: the word and its file. ModelNotFound, BadRequest, BadFile."""
    file, _, word = text.rpartition(":")
    if os.path.lexists(text) or not file:
        from txt2img.weights.adapters.textual_inversion import word_of

        path = Path(find_or_fail("--embedding", text))
        word = word_of(path)
    else:
        path = Path(find_or_fail("--embedding", file))
    return Embedding(word).token, path
