"""Open a VAE that replaces a model's own: a file in any layout, or a diffusers folder.

TAESD is recognised by its tensors, or by the class in its folder's config.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.configs import TinyConfig, VAEConfig
from txt2img.request.adapters import VAERef
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import detect, diffusers_config, key_maps, taesd
from txt2img.weights.layouts.components import (
    Component,
    component,
    config_folder,
    first_names,
    linear_attention,
    network_path,
    vae_header,
)
from txt2img.weights.registry.hashes import model_hash

VAEConfigAndTensors = tuple[VAEConfig, Component]
PREFIXES = (f"{key_maps.VAE}.", "vae.")  # in a whole model; the second is FLUX's by ComfyUI
# What training leaves in a VAE's file.
LEFTOVERS: key_maps.Table = dict.fromkeys(("loss", "model_ema"))


@dataclass(frozen=True)
class VAEFiles:
    """A VAE's config and tensors, and its record for pictures."""

    record: VAERef
    config: VAEConfig | TinyConfig
    component: Component


def open_vae(name: str, base: VAEConfig, hashed: bool = True) -> VAEFiles:
    """Open the VAE at a path for a model whose own is `base`, without reading weights.

    Its record has its hash if `hashed`, for which the whole file is read once.

    Raises ModelNotFound, BadFile, UnknownLayout; MissingWeights if it has other latents.
    """
    path = network_path("VAE", name)
    vae = _open_folder(path, hashed) if path.is_dir() else _open_file(path, base, hashed)
    if (vae.config.latent_channels, vae.config.factor) != (
        base.latent_channels,
        base.factor,
    ):
        raise MissingWeights(
            f"{shown(vae.record.name)} makes latents of {vae.config.latent_channels} channels, "
            f"{vae.config.factor} pixels a cell; this model needs {base.latent_channels} channels, "
            f"{base.factor} pixels"
        )
    return vae


def _open_file(path: Path, base: VAEConfig, hashed: bool) -> VAEFiles:
    """A single file, of a VAE or a whole model; the scaling factor, which it lacks, is `base`'s."""
    tensors: Mapping[str, TensorRef] = safetensors_file.header(path).tensors
    prefix = next((p for p in PREFIXES if any(n.startswith(p) for n in tensors)), "")
    if prefix:
        tensors = key_maps.strip_prefix(tensors, prefix)
    record = VAERef(path.name, model_hash((path,)) if hashed else "")
    if taesd.is_taesd(tensors):
        return _open_taesd(record, tensors)
    if "decoder.conv_in.weight" not in tensors:
        raise UnknownLayout(f"{path.name} is no VAE: it contains {first_names(list(tensors))}")
    config, part = vae_in({f"{prefix}{name}": ref for name, ref in tensors.items()}, prefix, base)
    return VAEFiles(record, config, part)


def vae_in(tensors: Mapping[str, TensorRef], prefix: str, base: VAEConfig) -> VAEConfigAndTensors:
    """The VAE among a file's tensors, in any layout; what they do not tell is as in `base`."""
    inside = key_maps.without_leftovers(key_maps.strip_prefix(tensors, prefix), LEFTOVERS)
    diffusers = any(name.startswith("decoder.up_blocks.") for name in inside)
    config = detect.vae_config(inside, base.scaling, diffusers)
    if not config.channels:
        raise UnknownLayout(f"a VAE without blocks: it contains {first_names(list(inside))}")
    config = replace(config, shift=base.shift, groups=base.groups)
    table = key_maps.vae_from_old_diffusers() if diffusers else key_maps.vae_from_ldm(config)
    return config, linear_attention(component(inside, table, prefix))


def _open_folder(folder: Path, hashed: bool) -> VAEFiles:
    """A VAE's own folder, or that of a whole model."""
    inner = config_folder("VAE", folder, "vae")
    config = files.read_json(inner / "config.json")
    header, alpha = vae_header(inner)
    record = VAERef(folder.resolve().name, model_hash(header.paths) if hashed else "")
    if config.get("_class_name") == taesd.CLASS:
        taesd.check(config)
        return _open_taesd(record, header.tensors)
    tensors = key_maps.renamed(header.tensors, key_maps.vae_from_old_diffusers())
    vae = Component(tensors, lambda name: name)
    shape = replace(diffusers_config.vae_config(config), alpha=alpha)
    return VAEFiles(record, shape, linear_attention(vae))


def _open_taesd(record: VAERef, tensors: Mapping[str, TensorRef]) -> VAEFiles:
    """A TAESD in either layout. Raises UnknownLayout, MissingWeights."""
    vae = component(tensors, taesd.key_map(tensors, record.name), "")
    return VAEFiles(record, taesd.config_from_tensors(vae.tensors, record.name), vae)
