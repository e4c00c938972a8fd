"""Open diffusion transformers: single files, files of their parts, diffusers folders.

Imported for such models only. A row of ARCHITECTURES is all that the layouts know of one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from txt2img.errors import BadRequest, MissingWeights, UnknownLayout
from txt2img.models.configs import Qwen3TextConfig, TextConfig, TextEncoderConfig
from txt2img.models.tokenizer import EOS, PromptTokenizer, Tokenizer
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights import text_tokenizer_files, tokenizer_files
from txt2img.weights import transformer_families as families
from txt2img.weights.families import Family, ProcessConfig, check_family
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.json_values import Config, check_fixed, flag, integer, number
from txt2img.weights.formats.safetensors_file import Header, TensorRef
from txt2img.weights.layouts import (
    detect,
    diffusers_config,
    key_maps,
    text_key_maps,
    transformer_configs,
    transformer_key_maps,
)
from txt2img.weights.layouts.components import (
    STEM,
    Component,
    config_folder,
    first_names,
    linear_attention,
    network_path,
    text_component,
)
from txt2img.weights.layouts.transformer_key_maps import LayerMap
from txt2img.weights.layouts.vae import PREFIXES as VAE_PREFIXES
from txt2img.weights.layouts.vae import vae_in
from txt2img.weights.transformer_families import TextRole

Tensors = Mapping[str, TensorRef]
# What files have before the network's names, and before the VAE's.
PREFIXES = (f"{key_maps.UNET}.", "diffusion_model.", "")

# Tensors of one row, and how many axes they have: GGUF files lose those that come first.
LEADING_AXES = {"pos_embed": 3, "cap_pad_token": 2, "x_pad_token": 2}

SCHEDULER_FIXED: Config = {
    "invert_sigmas": False,
    "shift_terminal": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
    "stochastic_sampling": False,
}
DYNAMIC_FIXED: Config = {
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
}


@dataclass(frozen=True)
class Architecture:
    """A transformer's names and maps; its configs are of one class of models/configs.py."""

    label: str
    class_name: str  # diffusers'
    roles: tuple[TextRole, ...]
    config: Callable[[Tensors], Any]  # of a single file, without prefix
    config_from_diffusers: Callable[[Config], Any]
    layers: Callable[[Any], LayerMap]
    variant: Callable[[Any, str], Family]  # a config and hints in lower case → the family


ARCHITECTURES = {
    "flux": Architecture(
        "FLUX.1",
        "FluxTransformer2DModel",
        families.FLUX_ROLES,
        transformer_configs.flux_config,
        transformer_configs.flux_from_diffusers,
        transformer_key_maps.flux_layers,
        families.flux_variant,
    ),
    "sd3": Architecture(
        "Stable Diffusion 3",
        "SD3Transformer2DModel",
        families.SD3_ROLES,
        transformer_configs.sd3_config,
        transformer_configs.sd3_from_diffusers,
        transformer_key_maps.sd3_layers,
        families.sd3_variant,
    ),
    "z-image": Architecture(
        "Z-Image",
        "ZImageTransformer2DModel",
        families.Z_IMAGE_ROLES,
        transformer_configs.z_image_config,
        transformer_configs.z_image_from_diffusers,
        transformer_key_maps.z_image_layers,
        families.z_image_variant,
    ),
    "flux2": Architecture(
        "FLUX.2 klein",
        "Flux2Transformer2DModel",
        families.FLUX2_ROLES,
        transformer_configs.flux2_config,
        transformer_configs.flux2_from_diffusers,
        transformer_key_maps.flux2_layers,
        families.flux2_variant,
    ),
}


@dataclass(frozen=True)
class Parts:
    """A model's family, tensors and tokenizers, and what is missing of it, in words."""

    family: Family
    components: dict[str, Component]
    tokenizers: dict[str, PromptTokenizer]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundText:
    """A text encoder among tensors."""

    kind: str
    prefix: str
    tensors: Tensors
    file: str  # for messages

    @property
    def inside(self) -> dict[str, TensorRef]:
        """Its tensors without the prefix."""
        rows = self.tensors.items()
        return {n.removeprefix(self.prefix): r for n, r in rows if n.startswith(self.prefix)}


def open_file(header: Header, which: str, hints: str, texts: Sequence[str]) -> Parts:
    """A single file of an architecture, with the text encoders in it or in the files `texts`.

    Raises UnknownLayout, MissingWeights, BadRequest.
    """
    architecture, tensors = ARCHITECTURES[which], header.tensors
    family, network = _network(architecture, tensors, hints)
    inside = [one for one in _texts_in(tensors, "") if one.prefix]
    given = [one for text in texts for one in _texts_of_file(text)]
    parts = _with_texts(family, architecture, inside, given)
    components = {family.network.component: network, **parts.components}
    for prefix in VAE_PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            vae, components["vae"] = vae_in(tensors, prefix, family.vae)
            family = replace(parts.family, vae=vae)
            parts = replace(parts, family=family)
    return replace(parts, family=check_family(parts.family), components=components)


def open_network(name: str, base: Family) -> tuple[str, Family, Component]:
    """A transformer at a path in place of a model's of the family `base`: its name, the family.

    Raises ModelNotFound, BadFile, UnknownLayout if the model's other components do not fit it.
    """
    path = network_path("transformer", name)
    home = path.parent if path.name == "transformer" else path
    title = safetensors_file.stem(home.resolve())
    if path.is_dir():
        inner = config_folder("transformer", path, "transformer")
        _, family, network = _network_of_folder(inner, title.lower())
    else:
        tensors = safetensors_file.header(path).tensors
        which = detect.match(tensors).transformer
        if not which:
            raise UnknownLayout(f"{shown(title)} is no diffusion transformer, as {base.name} has")
        family, network = _network(ARCHITECTURES[which], tensors, title.lower())
    old, new = base.network, family.network
    widths = new.cross_dim, new.pooled
    if type(old) is not type(new) or (old.cross_dim, old.pooled) != widths:
        raise UnknownLayout(
            f"{shown(title)} is of {family.name}, whose prompts and latents are others than "
            f"{base.name}'s"
        )
    parts = replace(family, texts=base.texts, pad_tokens=base.pad_tokens, vae=base.vae)
    return title, check_family(parts), network


def _network_of_folder(folder: Path, hints: str) -> tuple[Architecture, Family, Component]:
    """The architecture, family and network of a folder with its config.

    Raises UnknownLayout, BadFile.
    """
    config = files.read_json(folder / "config.json")
    known = {row.class_name: row for row in ARCHITECTURES.values()}
    if (kind := str(config.get("_class_name"))) not in known:
        raise UnknownLayout(
            f"{shown(folder.parent.name)}: {shown(kind)} is not supported; supported are "
            f"{', '.join(row.label for row in ARCHITECTURES.values())}"
        )
    row = known[kind]
    family = row.variant(row.config_from_diffusers(config), hints)
    header = safetensors_file.component(folder, STEM)
    return row, family, Component(header.tensors, lambda name: name)


def open_folder(folder: Path, hints: str, texts: Sequence[str]) -> Parts:
    """A diffusers folder, with text encoders in place of its own in `texts`. Raises as open_file.

    BadFile for broken configs.
    """
    architecture, family, network = _network_of_folder(folder / "transformer", hints)
    components = {"transformer": network}
    if (scheduler := folder / "scheduler" / "scheduler_config.json").is_file():
        family = replace(family, process=_process(files.read_json(scheduler), family.process))
    present = [role for role in _roles(architecture, family) if (folder / role.component).is_dir()]
    read = {role.component: _read_folder_text(folder, role) for role in present}
    given = [one for text in texts for one in _texts_of_file(text)]
    parts = _with_texts(family, architecture, [], given, read)
    components |= parts.components
    family = parts.family
    if (folder / "vae").is_dir():
        vae = diffusers_config.vae_config(files.read_json(folder / "vae" / "config.json"))
        stored = safetensors_file.component(folder / "vae", STEM).tensors
        renamed = key_maps.renamed(stored, key_maps.vae_from_old_diffusers())
        components["vae"] = linear_attention(Component(renamed, lambda name: name))
        family = replace(family, vae=vae)
    return replace(parts, family=check_family(family), components=components)


def _roles(architecture: Architecture, family: Family) -> list[TextRole]:
    """The text encoders of a family, which may read fewer tokens than others of its kind."""
    pairs = zip(architecture.roles, family.texts, strict=True)
    return [replace(role, config=config) for role, config in pairs]


def _network(architecture: Architecture, tensors: Tensors, hints: str) -> tuple[Family, Component]:
    """The family and the network of a single file. Raises UnknownLayout, MissingWeights."""
    prefix = next(p for p in PREFIXES if not p or any(n.startswith(p) for n in tensors))
    others = (*VAE_PREFIXES, "text_encoders.")
    inside = {
        name.removeprefix(prefix): ref
        for name, ref in key_maps.without_leftovers(tensors).items()
        if name.startswith(prefix) and (prefix or not name.startswith(others))
    }
    unknown = [n for n in tensors if not n.startswith((prefix, *others))] if prefix else []
    unknown = [n for n in unknown if key_maps.rename(n, key_maps.LEFTOVERS) is not None]
    if unknown:
        raise MissingWeights(
            f"{first_names(unknown)} of this file belong to no part of {architecture.label}"
        )
    inside |= {
        name: safetensors_file.with_axes(inside[name], count)
        for name, count in LEADING_AXES.items()
        if name in inside
    }
    config = architecture.config(inside)
    layers = architecture.layers(config)
    network = Component(layers.renamed(inside), partial(_file_name, layers, prefix))
    return architecture.variant(config, hints), network


def _file_name(layers: LayerMap, prefix: str, name: str) -> str:
    """The name in the file of one of our tensors; of a fused one, also which part it is."""
    layer = name.rpartition(".")[0]
    is_fused = any(layer in parts for parts in layers.fused.values())
    part = f" ({layer.rpartition('.')[2]})" if is_fused else ""
    return f"{prefix}{layers.original(name)}{part}"


def _process(config: Config, own: ProcessConfig) -> ProcessConfig:
    """The flow of a scheduler's config. Raises UnknownLayout, BadFile."""
    check_fixed(config, "scheduler", SCHEDULER_FIXED)
    n = integer(config, "num_train_timesteps", 1000, 2, 100_000)
    if not flag(config, "use_dynamic_shifting", False):
        return ProcessConfig("flow", n=n, shift=number(config, "shift", 1.0))
    if own.shift == "empirical":
        return replace(own, n=n)
    check_fixed(config, "scheduler", DYNAMIC_FIXED)
    return ProcessConfig("flow", n=n, shift="linear")


def _texts_in(tensors: Tensors, file: str) -> list[FoundText]:
    rows = text_key_maps.text_encoders(tensors).items()
    return [FoundText(kind, prefix, tensors, file) for prefix, kind in rows]


def _texts_of_file(name: str) -> list[FoundText]:
    """The text encoders in a file or folder. Raises ModelNotFound, BadFile, UnknownLayout."""
    path = network_path("text encoder", name)
    header = (
        safetensors_file.component(path, "model")
        if path.is_dir()
        else safetensors_file.header(path)
    )
    found = _texts_in(header.tensors, path.name)
    if not found:
        some = first_names(list(header.tensors))
        raise UnknownLayout(f"{shown(path.name)} is no text encoder: it contains {some}")
    return found


Text = tuple[TextEncoderConfig, Component, PromptTokenizer]


def _with_texts(
    family: Family,
    architecture: Architecture,
    own: Sequence[FoundText],
    given: Sequence[FoundText],
    read: Mapping[str, Text] | None = None,
) -> Parts:
    """The parts with a text encoder in each role: given ones first, then those read, then own.

    Raises BadRequest for one that has no role.
    """
    texts: dict[str, Text] = dict(read or {})
    roles = _roles(architecture, family)
    for role, one in _by_role(family.name, roles, own, given):
        texts[role.component] = _open_text(one, role)
    present = [role for role in roles if role.component in texts]
    missing = tuple(
        f"{family.name} needs {role.file}: give it with --text-encoder"
        for role in roles
        if role not in present and not role.optional
    )
    chosen = {role.component: texts[role.component] for role in present}
    tokenizers = {name: tokenizer for name, (_, _, tokenizer) in chosen.items()}
    pads = tuple(t.pad for t in tokenizers.values() if isinstance(t, Tokenizer))
    family = replace(
        family, texts=tuple(config for config, _, _ in chosen.values()), pad_tokens=pads
    )
    components = {name: component for name, (_, component, _) in chosen.items()}
    return Parts(family, components, tokenizers, missing)


def _by_role(
    name: str,
    roles: Sequence[TextRole],
    components: Sequence[FoundText],
    given: Sequence[FoundText],
) -> Iterator[tuple[TextRole, FoundText]]:
    """The roles of text encoders: given ones before a file's own. Raises BadRequest."""
    taken: dict[str, FoundText] = {}
    for one in (*given, *components):
        role = _role_of(one, roles, taken)
        if role is not None:
            taken[role.component] = one
            yield role, one
        elif one in given:
            needed = " and ".join(role.kind for role in roles)
            raise BadRequest(
                f"--text-encoder: {shown(one.file)} ({one.kind}) is one too many for {name}, "
                f"which has {needed}"
            )


def _role_of(
    one: FoundText, roles: Sequence[TextRole], taken: Mapping[str, FoundText]
) -> TextRole | None:
    """The role of a text encoder: of its kind and width, else the next of its kind."""
    free = [role for role in roles if role.kind == one.kind and role.component not in taken]
    if one.kind != "clip" or len(free) < 2:
        return free[0] if free else None
    if "clip_g" in one.prefix:
        return free[-1]
    width = detect.clip_config(one.inside, TextConfig()).width
    return next((role for role in free if role.config.width == width), free[0])


def _open_text(one: FoundText, role: TextRole) -> Text:
    """A text encoder of a single file, with the tokenizer that comes with the package."""
    like = role.config
    length = like.length
    if isinstance(like, TextConfig):
        clip = detect.clip_config(one.inside, like)
        pad = "!" if like.act == "gelu" else EOS
        tokenizer = tokenizer_files.clip_tokenizer(clip.length, pad)
        return clip, text_component(one.tensors, one.prefix, clip), tokenizer
    if role.kind == "t5":
        t5 = text_key_maps.t5_config(one.tensors, one.prefix, length)
        component = text_key_maps.t5_component(one.tensors, one.prefix, t5)
        return t5, component, text_tokenizer_files.t5_tokenizer(length)
    assert isinstance(like, Qwen3TextConfig)
    qwen3 = text_key_maps.qwen3_config(one.tensors, one.prefix, like.taps, length)
    component = text_key_maps.qwen3_component(one.tensors, one.prefix, qwen3)
    return qwen3, component, text_tokenizer_files.qwen_tokenizer(length)


def _read_folder_text(folder: Path, role: TextRole) -> Text:
    """A text encoder of a diffusers folder, with its own tokenizer."""
    home = folder / role.component
    config = files.read_json(home / "config.json")
    tensors = safetensors_file.component(home, "model").tensors
    tokenizer = folder / role.component.replace("text_encoder", "tokenizer")
    like = role.config
    if isinstance(like, TextConfig):
        clip = diffusers_config.text_config(config, like.penultimate, bool(like.projection))
        clip = replace(clip, pooled=like.pooled)
        words = tokenizer_files.read_tokenizer(tokenizer, clip.length, clip.vocab)
        return clip, text_component(tensors, "", clip), words
    if role.kind == "t5":
        t5 = text_key_maps.t5_from_transformers(config, like.length)
        words_t5 = text_tokenizer_files.read_t5_tokenizer(tokenizer, like.length)
        return t5, text_key_maps.t5_component(tensors, "", t5), words_t5
    assert isinstance(like, Qwen3TextConfig)
    qwen3 = text_key_maps.qwen3_from_transformers(config, like.taps, like.length)
    words_qwen = text_tokenizer_files.read_qwen_tokenizer(tokenizer, like.length)
    return qwen3, text_key_maps.qwen3_component(tensors, "", qwen3), words_qwen
