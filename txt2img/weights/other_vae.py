"""A VAE in place of a model's own: from a file in the original layout, or a diffusers folder.

Tiny ones (TAESD) are told by their tensors, or by their folder's config.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from txt2img import disk
from txt2img.errors import MissingWeights, ModelNotFound, UnknownLayout
from txt2img.escape import shown
from txt2img.extras import OtherVAE
from txt2img.models.shapes import TinyConfig, VAEConfig
from txt2img.weights import configs, detect, files, keymaps, tiny_vae
from txt2img.weights.files import Stored
from txt2img.weights.hashes import model_hash

STEM = "diffusion_pytorch_model"
# What training leaves in such files.
LEFTOVERS: keymaps.Table = dict.fromkeys(("loss", "model_ema"))


@dataclass(frozen=True)
class Found:
    """A VAE's tensors under our names, and how to say one in the file's layout."""

    record: OtherVAE
    config: VAEConfig | TinyConfig
    tensors: dict[str, Stored]
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
    tensors: Mapping[str, Stored] = files.header(path).tensors
    prefix = f"{keymaps.VAE}." if any(n.startswith(f"{keymaps.VAE}.") for n in tensors) else ""
    if prefix:
        tensors = keymaps.below(tensors, keymaps.VAE)
    if tiny_vae.is_tiny(tensors):
        return _tiny(OtherVAE(path.name, model_hash((path,))), tensors)
    kept = {n: s for n, s in tensors.items() if keymaps.rename(n, LEFTOVERS) is not None}
    if "decoder.conv_in.weight" not in kept:
        some = ", ".join(shown(name) for name in list(tensors)[:3]) or "nothing"
        raise UnknownLayout(f"{path.name} is no VAE: it holds {some}")
    theirs = any(name.startswith("decoder.up_blocks.") for name in kept)
    config = (detect.vae_of_diffusers if theirs else detect.vae_config)(kept, own.scaling)
    config = replace(config, shift=own.shift, groups=own.groups)
    table = keymaps.vae_from_old_diffusers() if theirs else keymaps.vae_from_ldm(config)
    back = keymaps.backwards(table)
    return Found(
        OtherVAE(path.name, model_hash((path,))),
        config,
        keymaps.flattened(keymaps.renamed(kept, table)),
        lambda name: f"{prefix}{keymaps.rename(name, back)}",
    )


def _folder(folder: Path) -> Found:
    """A VAE's own folder, or that of a whole model."""
    inner = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (inner / "config.json").is_file():
        raise UnknownLayout(f"{shown(folder.name)} is no folder of a VAE: it has no config.json")
    config = disk.read_json(inner / "config.json")
    header = files.component(inner, STEM)
    record = OtherVAE(folder.resolve().name, model_hash(header.paths))
    if config.get("_class_name") == tiny_vae.CLASS:
        tiny_vae.check(config)
        return _tiny(record, header.tensors)
    table = keymaps.vae_from_old_diffusers()
    return Found(
        record,
        configs.vae_config(config),
        keymaps.flattened(keymaps.renamed(header.tensors, table)),
        lambda name: name,
    )


def _tiny(record: OtherVAE, tensors: Mapping[str, Stored]) -> Found:
    """A TAESD, whichever layout it is in. UnknownLayout, MissingWeights."""
    table = tiny_vae.table(tensors, record.name)
    back = keymaps.backwards(table)
    ours = keymaps.renamed(tensors, table)
    return Found(
        record,
        tiny_vae.config_of(ours, record.name),
        ours,
        lambda name: str(keymaps.rename(name, back)),
    )
