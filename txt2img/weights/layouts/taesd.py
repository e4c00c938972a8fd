"""TAESD's tensors: their layout, and the network's config from their names.

There are taesd_decoder.safetensors (taesdxl_… for SDXL), whose layers are bare numbers, and
diffusers' AutoencoderTiny, whose decoder counts the same layers from one less.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise

from txt2img.errors import UnknownLayout
from txt2img.models.configs import FLUX_VAE, SD3_VAE, TinyConfig, VAEConfig
from txt2img.system.text import shown
from txt2img.weights.families import SD15, SDXL
from txt2img.weights.formats.json_values import Config, check_fixed
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts.key_maps import Table

CLASS = "AutoencoderTiny"
FIXED: Config = {
    "act_fn": "relu",
    "in_channels": 3,
    "out_channels": 3,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
}
# By the beginning of a file's name, longer ones first: a VAE with its latents, and whose it is.
TRAINED_FOR = {
    "taesdxl": (SDXL.vae, "SDXL"),
    "taesd3": (SD3_VAE, "SD 3"),
    "taef1": (FLUX_VAE, "FLUX.1"),
    "taesd": (SD15.vae, "SD 1 and SD 2"),
}
LAYERS_MAX = 64
_NUMBERED = re.compile(r"\d{1,3}\.(?:conv\.\d\.)?(?:weight|bias)")
_BLOCK = r"{}\.layers\.(\d{{1,3}})\.conv\.0\.weight"


def is_taesd(tensors: Iterable[str]) -> bool:
    """Whether tensors of these names are a TAESD's, in either layout."""
    names = list(tensors)
    bare = bool(names) and all(_NUMBERED.fullmatch(name) for name in names)
    return bare or any(name.startswith("decoder.layers.") for name in names)


def check(config: Config) -> None:
    """Raise UnknownLayout for settings that no published TAESD has."""
    check_fixed(config, "vae", FIXED)


def vae_warnings(name: str, base: VAEConfig) -> list[str]:
    """Warn of a TAESD whose name is of another family than the model.

    Those of SD and SDXL, and of SD 3 and FLUX.1, have the same shapes: only the name tells them
    apart.
    """
    match = re.search("|".join(TRAINED_FOR), name.lower())
    families = {vae.scaling: family for vae, family in TRAINED_FOR.values()}
    if not match or base.scaling not in families:
        return []
    vae, theirs = TRAINED_FOR[match[0]]
    if vae.scaling == base.scaling:
        return []
    ours = families[base.scaling]
    return [f"{shown(name)} seems made for {theirs}; this model's latents are {ours}'s"]


def key_map(tensors: Mapping[str, TensorRef], name: str) -> Table:
    """The key map of a file. Raises UnknownLayout for an encoder alone."""
    if any(name.startswith("decoder.layers.") for name in tensors):
        return {f"{side}.layers.0": f"{side}.conv_in" for side in ("encoder", "decoder")}
    if "0.weight" in tensors:  # the decoder's first layer has no weights
        raise UnknownLayout(f"{shown(name)} is the encoder of a TAESD; give its decoder")
    layers = {str(n): f"decoder.layers.{n - 1}" for n in range(2, LAYERS_MAX)}
    return {"1": "decoder.conv_in", **layers}


def config_from_tensors(ours: Mapping[str, TensorRef], name: str) -> TinyConfig:
    """The config of tensors under our names. Raises UnknownLayout for other networks."""
    first = ours.get("decoder.conv_in.weight")
    if first is None or len(first.shape) != 4:
        raise UnknownLayout(f"{shown(name)} is no TAESD: its decoder has no first convolution")
    width, channels = first.shape[:2]
    decoder = _levels(ours, "decoder")
    if not decoder:
        raise UnknownLayout(f"{shown(name)} is no TAESD: its decoder has no residual block")
    return TinyConfig(channels, width, _levels(ours, "encoder"), decoder)


def _levels(names: Iterable[str], side: str) -> tuple[int, ...]:
    """Residual blocks by level: a gap in the numbers of the layers begins a new level."""
    matches = (re.fullmatch(_BLOCK.format(side), name) for name in names)
    numbers = sorted(int(match[1]) for match in matches if match)
    if not numbers:
        return ()
    level = [0, *accumulate(int(b - a > 1) for a, b in pairwise(numbers))]
    return tuple(level.count(one) for one in dict.fromkeys(level))
