"""Sort a checkpoint's tensors into components, under our names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img.errors import MissingWeights, ModelNotFound, UnknownLayout
from txt2img.models.configs import NetworkConfig, TextConfig
from txt2img.system.files import expand_user
from txt2img.system.text import escape, shown
from txt2img.weights.families import Family
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import NAME_MAX, TensorRef
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.diffusers_config import TEXT_ENCODERS

Tensors = Mapping[str, TensorRef]
STEM = "diffusion_pytorch_model"  # of weight files in diffusers folders
ALPHA_FILE = "alpha.safetensors"  # an alpha head, beside a VAE's own file in its folder
ALPHA = "alpha."  # before the names of its tensors
BLOCK_TENSORS = 10  # a transformer block has more
# The image encoder of a whole CLIP, as OpenCLIP and transformers name it.
VISION = ("visual.", "vision_model.", "visual_projection.", "logit_bias")


@dataclass(frozen=True)
class Component:
    """A network's tensors under our names."""

    tensors: dict[str, TensorRef]
    file_name: Callable[[str], str]  # our name → the file's, for messages


def component(tensors: Tensors, table: key_maps.Table, prefix: str) -> Component:
    """Tensors renamed by a table; `prefix` is what the file has before each name."""
    back = key_maps.inverted(table)
    renamed = key_maps.renamed(tensors, table)
    return Component(renamed, lambda name: f"{prefix}{key_maps.rename(name, back)}")


def original_components(tensors: Tensors, family: Family) -> dict[str, Component]:
    """The components of a single file in the original layout.

    Raises MissingWeights for tensors of no component.
    """
    tensors = key_maps.without_leftovers(tensors)
    text_prefixes = _text_prefixes(tensors, family)
    tables = {
        ("unet", key_maps.UNET): key_maps.unet_from_ldm(family.unet),
        ("vae", key_maps.VAE): key_maps.vae_from_ldm(family.vae),
    }
    for name, (prefix, text) in zip(TEXT_ENCODERS, text_prefixes.items(), strict=False):
        published = prefix in (key_maps.CLIP, key_maps.XL_CLIP)
        tables[name, prefix] = (
            key_maps.clip_from_published()
            if published
            else key_maps.clip_from_open_clip(text.layers, bool(text.projection))
        )
    components = {
        name: component(
            key_maps.split_qkv(key_maps.strip_prefix(tensors, f"{prefix}.")), table, f"{prefix}."
        )
        for (name, prefix), table in tables.items()
    }
    components["vae"] = linear_attention(components["vae"])
    if not components["vae"].tensors:  # as in many merged checkpoints
        del components["vae"]
    prefixes = tuple(f"{prefix}." for _, prefix in tables)
    unknown = [name for name in tensors if not name.startswith(prefixes)]
    if unknown:
        raise MissingWeights(
            f"{first_names(unknown)} of this file belong to no part of {family.name}"
        )
    return components


def folder_components(tensors: Mapping[str, Tensors], family: Family) -> dict[str, Component]:
    """The components of a diffusers folder, whose tensors are given by component."""
    tables: dict[str, key_maps.Table] = {"unet": {}, "vae": key_maps.vae_from_old_diffusers()}
    encoders = [name for name in tensors if name not in tables]
    texts = dict(zip(encoders, family.clip_texts, strict=True))
    tables |= {n: key_maps.clip_from_published(bool(t.projection)) for n, t in texts.items()}
    components = {
        name: text_component(tensors[name], "", texts[name])
        if name in texts and _is_open_clip(tensors[name])
        else Component(key_maps.renamed(tensors[name], table), lambda name: name)
        for name, table in tables.items()
    }
    components["vae"] = linear_attention(components["vae"])
    return components


def vae_header(folder: Path) -> tuple[safetensors_file.Header, int]:
    """A VAE folder's tensors, with those of its alpha head, and that head's width; 0 without one.

    Raises BadFile, MissingWeights, UnknownLayout.
    """
    header = safetensors_file.component(folder, STEM)
    if not (folder / ALPHA_FILE).is_file():
        return header, 0
    head = safetensors_file.header(folder / ALPHA_FILE).tensors
    last = head.get(f"{ALPHA}full_in.weight")
    if last is None or not last.shape:
        raise UnknownLayout(
            f"{folder.name}/{ALPHA_FILE} is no alpha head: {first_names(list(head))}"
        )
    return replace(header, tensors={**header.tensors, **head}), last.shape[0]


def linear_attention(vae: Component) -> Component:
    """The VAE with the 1×1 convolutions of its attention as linear layers."""
    return replace(vae, tensors=key_maps.conv_to_linear(vae.tensors))


def text_widths(tensors: Tensors) -> dict[str, int]:
    """The prefixes of a file's text encoders, each with its encoder's width."""
    return {
        name.removesuffix(ending).removesuffix("text_model."): ref.shape[1]
        for name, ref in tensors.items()
        for ending in ("embeddings.token_embedding.weight", "token_embedding.weight")
        if f".{name}".endswith(f".{ending}") and len(ref.shape) == 2
        if ending.startswith("embeddings") or ".embeddings." not in f".{name}"
    }


def text_component(tensors: Tensors, prefix: str, text: TextConfig) -> Component:
    """The text encoder after a prefix, in OpenCLIP's layout or transformers'.

    A whole CLIP's image encoder is left out, and a last layer that the model does not use.
    """
    inside = key_maps.strip_prefix(tensors, prefix)
    inside = {name: ref for name, ref in inside.items() if not name.startswith(VISION)}
    if _is_open_clip(inside):
        table = key_maps.clip_from_open_clip(text.layers, bool(text.projection))
        return component(key_maps.split_qkv(inside), table, prefix)
    table = key_maps.clip_from_published(bool(text.projection))
    if not text.penultimate:
        table |= {f"{p}encoder.layers.{text.layers}": None for p in ("", "text_model.")}
    return component(inside, table, prefix)


def _is_open_clip(tensors: Tensors) -> bool:
    return any(name.startswith("transformer.resblocks.") for name in tensors)


def published_name(name: str) -> str:
    """The published name of a parameter: our text encoders have `model.` before it."""
    return name.removeprefix("model.")


def _text_prefixes(tensors: Tensors, family: Family) -> dict[str, TextConfig]:
    """The prefix of each text encoder in a file of the original layout."""
    first, *others = family.clip_texts
    if others:
        return {key_maps.XL_CLIP: first, key_maps.XL_OPEN_CLIP: others[0]}
    if first.projection:
        return {key_maps.REFINER_CLIP: first}
    open_clip = any(name.startswith(f"{key_maps.OPEN_CLIP}.") for name in tensors)
    return {key_maps.OPEN_CLIP if open_clip else key_maps.CLIP: first}


def shape_of(
    owner: str, tensors: Tensors, names: str | tuple[str, ...], dimensions: int | None = 2
) -> tuple[int, ...]:
    """The shape of the first of some tensors, of which an `owner` such as "transformer" has one.

    Raises UnknownLayout if none is there, or it has other dimensions.
    """
    names = (names,) if isinstance(names, str) else names
    name = next((name for name in names if name in tensors), None)
    if name is None:
        raise UnknownLayout(f"{owner}: {names[0]} is missing: the file is incomplete")
    shape = tensors[name].shape
    if 0 in shape or (dimensions is not None and len(shape) != dimensions):
        raise UnknownLayout(f"{owner}: {escape(name)} has the shape {shape}")
    return shape


def count_modules(tensors: Tensors, prefix: str) -> int:
    """The number of numbered modules after a prefix."""
    numbers = {n[len(prefix) :].split(".", 1)[0] for n in tensors if n.startswith(prefix)}
    return sum(number.isdecimal() for number in numbers)


def first_names(names: Sequence[str]) -> str:
    """The first three of many names, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(shown(name, NAME_MAX) for name in names[:3]) or "nothing") + more


def network_path(kind: str, name: str) -> Path:
    """The file or folder of a single network; its folder, for a file beside a config.

    Raises ModelNotFound.
    """
    path = expand_user(name)
    if not path.exists():
        raise ModelNotFound(
            f"no {kind} {shown(name)}: give a .safetensors file or a diffusers folder"
        )
    beside_config = path.stem == STEM and (path.parent / "config.json").is_file()
    return path.parent if path.is_file() and beside_config else path


def config_folder(kind: str, folder: Path, component: str) -> Path:
    """A folder that has a component's config: the given one, or one in it. Raises UnknownLayout."""
    inner = folder / component if (folder / component).is_dir() else folder
    if not (inner / "config.json").is_file():
        raise UnknownLayout(f"{shown(folder.name)} is no folder of a {kind}: it has no config.json")
    return inner


def check_depth(network: NetworkConfig, part: Component) -> None:
    """Raise MissingWeights for a config of more blocks than its file has tensors for.

    Building such a network would take minutes.
    """
    if BLOCK_TENSORS * network.blocks > len(part.tensors):
        raise MissingWeights(
            f"{network.component}: a config of {network.blocks:,} transformer blocks for a file of "
            f"{len(part.tensors):,} tensors"
        )


def check_tensors(name: str, part: Component, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise MissingWeights unless a component has exactly the tensors of these names and shapes."""
    missing = [part.file_name(tensor) for tensor in shapes if tensor not in part.tensors]
    extra = [part.file_name(tensor) for tensor in part.tensors if tensor not in shapes]
    if missing:
        also = f"; unknown are {first_names(extra)}" if extra else ""
        raise MissingWeights(f"{name}: {first_names(missing)} missing{also}; download it again")
    if extra:
        raise MissingWeights(f"{name}: {first_names(extra)} unknown to this architecture")
    for tensor, shape in shapes.items():
        if (got := part.tensors[tensor].shape) != shape:
            tensor_name = shown(part.file_name(tensor), NAME_MAX)
            raise MissingWeights(f"{name}: {tensor_name} has the shape {got}; {shape} is needed")
