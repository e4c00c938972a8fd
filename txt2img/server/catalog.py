"""Models, LoRAs, upscalers and embeddings that clients may name, and their files on this machine.

No text from the net is ever taken for a path: it is looked up here, or refused.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img.errors import ModelNotFound, Txt2imgError
from txt2img.request.input_image import ImagePaths
from txt2img.request.resolve import SUFFIX, AdapterPaths
from txt2img.system import user_config
from txt2img.system.files import expand_user, walk
from txt2img.system.text import nearest_or_all, shown

TITLE = re.compile(r"(.*?)(?:\.safetensors)?(?: \[[0-9a-f]+\])?", re.DOTALL)  # A1111's


@dataclass(frozen=True)
class Catalog:
    """What is offered: each name with what the loader takes, a path or a name of the config."""

    default: str
    models: Mapping[str, str]
    library: AdapterPaths  # single files only: no folder is searched for a name from the net

    def model(self, name: str) -> str:
        """The offered model that a client names; the last part of a name will do. ModelNotFound."""
        if not name:
            return self.default
        match = TITLE.fullmatch(name)
        bare = (match[1] if match else name).casefold()
        if name in self.models:
            return name
        whole = [one for one in self.models if one.casefold() == bare]
        last = [one for one in self.models if re.split("[/:]", one)[-1].casefold() == bare]
        if len(found := whole or last) == 1:
            return found[0]
        raise ModelNotFound(
            f"no model {shown(name)} is offered here{nearest_or_all(name, self.models)}"
        )


def scan(model: str, library: AdapterPaths) -> Catalog:
    """Look for all that can be offered, with `model` as the default one. ModelNotFound, BadFile."""
    from txt2img.weights.checkpoint import find_model
    from txt2img.weights.registry import find

    path = find_model(model)
    default = model
    if os.path.lexists(expand_user(model)):
        default = find.model_name(path) if path.is_dir() else path.name.removesuffix(SUFFIX)
    models = {default: model, "default": "default"}
    models |= {name: name for name in user_config.read_config().models if is_model(name)}
    found, others = find_files(library)
    return Catalog(default, models | {n: p for n, p in others.items() if n not in models}, found)


def find_files(library: AdapterPaths) -> tuple[AdapterPaths, dict[str, str]]:
    """The library with a file for each name and no folders; and the models by name. BadFile."""
    from txt2img.weights.control_file import GENERIC
    from txt2img.weights.file_kind import kind_of
    from txt2img.weights.registry import find

    loras, upscalers = dict(library.loras), dict(library.upscalers)
    controls, ip_adapters = dict(library.controls), dict(library.ip_adapters)
    kinds = {"LoRA": loras, "upscaler": upscalers, "IP-Adapter": ip_adapters}
    kinds |= dict.fromkeys(("ControlNet", "T2I-Adapter"), controls)
    models: dict[str, str] = {}
    for folder in library.lora_folders:
        for file in safetensors_below(folder):
            loras.setdefault(file.name.removesuffix(SUFFIX), file)
    for name, place in find.list_models():
        kind = "" if place.is_dir() else kind_of(place)
        if kind in kinds:
            generic = place.name.startswith(GENERIC)  # a folder's name tells more
            bare = place.parent.name if generic else place.name.removesuffix(SUFFIX)
            kinds[kind].setdefault(bare, place)
        elif is_model(str(place)):
            models.setdefault(name, str(place))
    found = replace(library, lora_folders=(), embedding_folders=(), model_folders=())
    found = replace(found, loras=loras, embeddings=library.embedding_files(), upscalers=upscalers)
    return replace(found, controls=controls, ip_adapters=ip_adapters, images=ImagePaths()), models


def is_model(name_or_path: str) -> bool:
    """Whether a whole model is there, by its headers."""
    from txt2img.weights.checkpoint import summary

    try:
        summary(name_or_path, hashed=False)
    except Txt2imgError:
        return False
    return True


def safetensors_below(folder: Path) -> Iterator[Path]:
    """The .safetensors files of a folder, then those in folders inside it, by name."""
    found = [(at, file) for at, _, names in walk(folder, []) for file in sorted(names)]
    for at, file in sorted(found, key=lambda one: (one[0] != folder, str(one[0]))):
        if file.endswith(SUFFIX) and os.path.isfile(at / file):
            yield at / file
