"""A file's or folder's tensors, sorted by network, under our names."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from txt2img.errors import MissingWeights
from txt2img.models.configs import TextConfig, UNetConfig
from txt2img.system.text import shown
from txt2img.weights.families import Family
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.diffusers_config import TEXTS

Tensors = Mapping[str, TensorRef]
BLOCK_TENSORS = 10  # a transformer block has more
# The other half of a whole CLIP, as OpenCLIP and transformers name it.
SEEING = ("visual.", "vision_model.", "visual_projection.", "logit_bias")


@dataclass(frozen=True)
class Part:
    """A network's tensors under our names, and how to say one in the file's layout."""

    tensors: dict[str, TensorRef]
    theirs: Callable[[str], str]


def original_parts(tensors: Tensors, family: Family) -> dict[str, Part]:
    """The networks' tensors in an original-layout file. Raises MissingWeights for foreign ones."""
    table = key_maps.unet_from_ldm(family.network)
    parts = {"unet": _part(tensors, key_maps.UNET, table)}
    vae = _part(tensors, key_maps.VAE, key_maps.vae_from_ldm(family.vae))
    if vae.tensors:  # many files of others' mixtures have none
        parts["vae"] = replace(vae, tensors=key_maps.flattened(vae.tensors))
    prefixes = _clip_prefixes(tensors, family)
    for component, (prefix, text) in zip(TEXTS, prefixes.items(), strict=False):
        parts[component] = _text_part(tensors, prefix, text)
    known = tuple(f"{prefix}." for prefix in (key_maps.UNET, key_maps.VAE, *prefixes))
    foreign = [
        name
        for name in tensors
        if not name.startswith(known) and key_maps.rename(name, key_maps.LEFTOVERS) is not None
    ]
    if foreign:
        raise MissingWeights(f"{listed(foreign)} of this file belong to no part of {family.name}")
    return parts


def folder_parts(tensors: Mapping[str, Tensors], family: Family) -> dict[str, Part]:
    """The networks' tensors in a diffusers folder, given by component."""
    tables: dict[str, key_maps.Table] = {"unet": {}, "vae": key_maps.vae_from_old_diffusers()}
    texts = [component for component in tensors if component not in tables]
    for component, text in zip(texts, family.texts, strict=True):
        tables[component] = key_maps.clip_from_published(bool(text.projection))
    parts = {
        component: Part(key_maps.renamed(stored, tables[component]), lambda name: name)
        for component, stored in tensors.items()
    }
    for component, text in zip(texts, family.texts, strict=True):
        if _is_open_clip(tensors[component], ""):
            parts[component] = text_part(tensors[component], "", text)
    parts["vae"] = replace(parts["vae"], tensors=key_maps.flattened(parts["vae"].tensors))
    return parts


def text_widths(tensors: Tensors) -> dict[str, int]:
    """What stands before the names of each text encoder of a file, and how wide that one is."""
    return {
        name.removesuffix(ending).removesuffix("text_model."): stored.shape[1]
        for name, stored in tensors.items()
        for ending in ("embeddings.token_embedding.weight", "token_embedding.weight")
        if f".{name}".endswith(f".{ending}") and len(stored.shape) == 2
        if ending.startswith("embeddings") or ".embeddings." not in f".{name}"
    }


def text_part(tensors: Tensors, prefix: str, text: TextConfig) -> Part:
    """The text encoder after a prefix, in OpenCLIP's layout or the published one.

    What sees pictures beside it is left out, and a last layer that the model does not use.
    """
    inside = {
        name.removeprefix(prefix): stored
        for name, stored in tensors.items()
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith(SEEING)
    }
    if _is_open_clip(tensors, prefix):
        table = key_maps.clip_from_open_clip(text.layers, bool(text.projection))
        inside = key_maps.unfused(inside)
    else:
        table = key_maps.clip_from_published(bool(text.projection))
        if not text.penultimate:
            table |= {f"{p}encoder.layers.{text.layers}": None for p in ("", "text_model.")}
    back = key_maps.backwards(table)
    made = key_maps.renamed(inside, table)
    return Part(made, lambda name: f"{prefix}{key_maps.rename(name, back)}")


def _is_open_clip(tensors: Tensors, prefix: str) -> bool:
    return any(name.startswith(f"{prefix}transformer.resblocks.") for name in tensors)


def bare(name: str) -> str:
    """A parameter's name in our modules as the files of a text encoder have it."""
    return name.removeprefix("model.")


def _clip_prefixes(tensors: Tensors, family: Family) -> dict[str, TextConfig]:
    """Where the file has each text encoder."""
    if family.text_2 is not None:
        return {key_maps.XL_CLIP: family.text, key_maps.XL_OPEN_CLIP: family.text_2}
    if family.text.projection:
        return {key_maps.REFINER_CLIP: family.text}
    found = any(name.startswith(f"{key_maps.OPEN_CLIP}.") for name in tensors)
    return {key_maps.OPEN_CLIP if found else key_maps.CLIP: family.text}


def _text_part(tensors: Tensors, prefix: str, text: TextConfig) -> Part:
    if prefix in (key_maps.CLIP, key_maps.XL_CLIP):
        return _part(tensors, prefix, key_maps.clip_from_published())
    table = key_maps.clip_from_open_clip(text.layers, bool(text.projection))
    return _part(key_maps.unfused(tensors), prefix, table)


def _part(tensors: Tensors, prefix: str, table: key_maps.Table) -> Part:
    kept = {n: s for n, s in tensors.items() if key_maps.rename(n, key_maps.LEFTOVERS) is not None}
    back = key_maps.backwards(table)
    return Part(
        key_maps.renamed(key_maps.below(kept, prefix), table),
        lambda name: f"{prefix}.{key_maps.rename(name, back)}",
    )


def listed(names: list[str]) -> str:
    """The first names of many."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(shown(name, safetensors_file.NAME_MAX) for name in names[:3]) + more


def check_size(network: UNetConfig, part: Part) -> None:
    """Refuse a config that asks for more than its file can hold before that is built: it takes
    minutes. Raises MissingWeights.
    """
    levels = range(len(network.channels))
    down = [network.depths(level, network.layers) for level in levels if network.attention[level]]
    up = [network.depths(n, network.layers + 1, True) for n in levels if network.attention[n]]
    blocks = sum(map(sum, [*down, *up]))
    if BLOCK_TENSORS * blocks > len(part.tensors):
        raise MissingWeights(
            f"unet: a config of {blocks:,} transformer blocks for a file of {len(part.tensors):,} "
            "tensors"
        )


def check(component: str, part: Part, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor must be there, in its shape, and no other. Raises MissingWeights."""
    missing = [part.theirs(name) for name in wanted if name not in part.tensors]
    extra = [part.theirs(name) for name in part.tensors if name not in wanted]
    if missing:
        also = f"; unknown are {listed(extra)}" if extra else ""
        raise MissingWeights(f"{component}: {listed(missing)} missing{also}; download it again")
    if extra:
        raise MissingWeights(f"{component}: {listed(extra)} unknown to this architecture")
    for name, shape in wanted.items():
        if (got := part.tensors[name].shape) != shape:
            what = shown(part.theirs(name), safetensors_file.NAME_MAX)
            raise MissingWeights(f"{component}: {what} has the shape {got}; {shape} is needed")
