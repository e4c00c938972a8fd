"""A VAE in place of a model's own: from a file in the original layout, or a diffusers folder.

Tiny ones (TAESD) are told by their tensors, or by their folder's config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img.errors import MissingWeights, ModelNotFound, UnknownLayout
from txt2img.models.configs import TinyConfig, VAEConfig
from txt2img.request.adapters import VAERef
from txt2img.system import files
from txt2img.system.text import shown
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import (
    detect,
    diffusers_config,
    key_maps,
    taesd,
)
from txt2img.weights.registry.hashes import model_hash

STEM = "diffusion_pytorch_model"
# What training leaves in such files.
LEFTOVERS: key_maps.Table = dict.fromkeys(("loss", "model_ema"))


@dataclass(frozen=True)
class Found:
    """A VAE's tensors under our names, and how to say one in the file's layout."""

    record: VAERef
    config: VAEConfig | TinyConfig
    tensors: dict[str, TensorRef]
    theirs: Callable[[str], str]


def open_vae(name: str, own: VAEConfig) -> Found:
    """The VAE at a path, for a model whose own is `own`; no weights are read.

    Raises ModelNotFound, BadFile, UnknownLayout; MissingWeights if it makes other latents.
    """
    path = find_vae(name)
    if path.is_file() and path.stem == STEM and (path.parent / "config.json").is_file():
        path = path.parent
    found = _folder(path) if path.is_dir() else _file(path, own)
    got, wanted = found.config, own
    if (got.latent_channels, got.factor) != (wanted.latent_channels, wanted.factor):
        raise MissingWeights(
            f"{shown(found.record.name)} makes latents of {got.latent_channels} channels, "
            f"{got.factor} pixels a cell; this model needs {wanted.latent_channels} channels, "
            f"{wanted.factor} pixels"
        )
    return found


def find_vae(name: str) -> Path:
    """Where the VAE is that a name or path means. ModelNotFound."""
    path = Path(name).expanduser()
    if not path.exists():
        raise ModelNotFound(f"no VAE {shown(name)}: give a .safetensors file or a diffusers folder")
    return path


def _file(path: Path, own: VAEConfig) -> Found:
    """A single file in either layout, alone or within a whole model.

    It says no scale, so the model's is kept.
    """
    tensors: Mapping[str, TensorRef] = safetensors_file.header(path).tensors
    prefix = f"{key_maps.VAE}." if any(n.startswith(f"{key_maps.VAE}.") for n in tensors) else ""
    if prefix:
        tensors = key_maps.below(tensors, key_maps.VAE)
    if taesd.is_tiny(tensors):
        return _tiny(VAERef(path.name, model_hash((path,))), tensors)
    kept = {n: s for n, s in tensors.items() if key_maps.rename(n, LEFTOVERS) is not None}
    if "decoder.conv_in.weight" not in kept:
        some = ", ".join(shown(name) for name in list(tensors)[:3]) or "nothing"
        raise UnknownLayout(f"{path.name} is no VAE: it holds {some}")
    theirs = any(name.startswith("decoder.up_blocks.") for name in kept)
    config = (detect.vae_of_diffusers if theirs else detect.vae_config)(kept, own.scaling)
    config = replace(config, shift=own.shift, groups=own.groups)
    table = key_maps.vae_from_old_diffusers() if theirs else key_maps.vae_from_ldm(config)
    back = key_maps.backwards(table)
    return Found(
        VAERef(path.name, model_hash((path,))),
        config,
        key_maps.flattened(key_maps.renamed(kept, table)),
        lambda name: f"{prefix}{key_maps.rename(name, back)}",
    )


def _folder(folder: Path) -> Found:
    """A VAE's own folder, or that of a whole model."""
    inner = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (inner / "config.json").is_file():
        raise UnknownLayout(f"{shown(folder.name)} is no folder of a VAE: it has no config.json")
    config = files.read_json(inner / "config.json")
    header = safetensors_file.component(inner, STEM)
    record = VAERef(folder.resolve().name, model_hash(header.paths))
    if config.get("_class_name") == taesd.CLASS:
        taesd.check(config)
        return _tiny(record, header.tensors)
    table = key_maps.vae_from_old_diffusers()
    return Found(
        record,
        diffusers_config.vae_config(config),
        key_maps.flattened(key_maps.renamed(header.tensors, table)),
        lambda name: name,
    )


def _tiny(record: VAERef, tensors: Mapping[str, TensorRef]) -> Found:
    """A TAESD, whichever layout it is in. UnknownLayout, MissingWeights."""
    table = taesd.table(tensors, record.name)
    back = key_maps.backwards(table)
    ours = key_maps.renamed(tensors, table)
    return Found(
        record,
        taesd.config_of(ours, record.name),
        ours,
        lambda name: str(key_maps.rename(name, back)),
    )
