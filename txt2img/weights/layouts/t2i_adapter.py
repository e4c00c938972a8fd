"""T2I-Adapter files: their config and tensors in diffusers' and the original names."""

from collections.abc import Mapping
from math import isqrt

from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.configs import UNetConfig
from txt2img.models.control_configs import T2IAdapterConfig
from txt2img.system.text import shown
from txt2img.weights.families import Family
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import Component, Tensors, component

PREFIX = "adapter."  # of diffusers
LAYERS = 2  # residual blocks of a level in the original full adapters, whose names do not tell
XL_SIDE = 16


def is_t2i_adapter(tensors: Tensors) -> bool:
    """Whether tensors are a T2I-Adapter's: these have bodies of pairs of convolutions."""
    bare = {name.removeprefix(PREFIX) for name in tensors}
    firsts = ("body.0.block1.weight", "body.0.resnets.0.block1.weight")
    return any(first in bare for first in (*firsts, "body.0.body.0.block1.weight"))


def t2i_adapter_in(
    tensors: Tensors, name: str, xl: bool | None = None
) -> tuple[T2IAdapterConfig, Component]:
    """The config of a T2I-Adapter's tensors and these under diffusers' names.

    Whether it is for SDXL no tensor tells; usually its cells do. UnknownLayout, MissingWeights.
    """
    prefix = PREFIX if all(one.startswith(PREFIX) for one in tensors) else ""
    tensors = {one.removeprefix(prefix): ref for one, ref in tensors.items()}
    part = component(tensors, _from_original(tensors), prefix)
    return _config({one: ref.shape for one, ref in part.tensors.items()}, name, xl), part


def _from_original(tensors: Tensors) -> key_maps.Table:
    """The original names → diffusers', which numbers residual blocks within their level."""
    if "body.0.block1.weight" not in tensors:
        names = {tuple(one.split(".")[1:4:2]) for one in tensors if ".body." in one}
        return {f"body.{level}.body.{i}": f"body.{level}.resnets.{i}" for level, i in names}
    count = len({one.split(".")[1] for one in tensors if one.startswith("body.")})
    table: key_maps.Table = {}
    for place in range(count):
        level, i = divmod(place, LAYERS)
        if i == 0:
            table[f"body.{place}.in_conv"] = f"body.{level}.in_conv"
        for block in ("block1", "block2"):
            table[f"body.{place}.{block}"] = f"body.{level}.resnets.{i}.{block}"
    return table


def _config(shapes: Mapping[str, tuple[int, ...]], name: str, xl: bool | None) -> T2IAdapterConfig:
    """The config that the tensors' shapes tell. MissingWeights, UnknownLayout."""
    light = "body.0.out_conv.weight" in shapes
    last = "out_conv.weight" if light else "resnets.0.block1.weight"
    levels = len({one.split(".")[1] for one in shapes if one.startswith("body.")})
    ends = [shapes.get(f"body.{level}.{last}", ()) for level in range(levels)]
    first = shapes.get("body.0.in_conv.weight" if light else "conv_in.weight", ())
    if any(len(shape) != 4 or not all(shape) for shape in [first, *ends]):
        raise MissingWeights(f"{shown(name)} is no whole T2I-Adapter: download it again")
    in_channels = 1 if first[1] % 3 else 3  # a cell's pixels are channels here
    side = isqrt(first[1] // in_channels)
    if in_channels * side**2 != first[1]:
        raise UnknownLayout(f"{shown(name)}: a T2I-Adapter of {first[1]} channels is not known")
    layers = len({one.split(".")[3] for one in shapes if one.startswith("body.0.resnets.")})
    xl = side == XL_SIDE if xl is None else xl
    downs = (2,) if xl and not light else tuple(range(1, levels))
    channels = tuple(shape[0] for shape in ends)
    return T2IAdapterConfig(channels, layers, in_channels, side, downs, light)


def made_for(config: T2IAdapterConfig) -> str:
    """The family that a T2I-Adapter is for."""
    return "Stable Diffusion XL" if config.unshuffle == XL_SIDE else "Stable Diffusion 1"


def is_for_xl(unet: UNetConfig) -> bool:
    """Whether features of a U-Net's first level are added after it is halved, as in SDXL."""
    return not unet.attention[0]


def check_fits(config: T2IAdapterConfig, name: str, family: Family) -> None:
    """Raise UnknownLayout for a T2I-Adapter that was made for another family's U-Net."""
    unet, factor = family.unet, family.vae.factor
    xl = is_for_xl(unet)
    maps = (*unet.channels, unet.channels[-1]) if xl else unet.channels  # XL: also the middle
    if (config.channels, config.unshuffle) != (maps, factor * (1 + xl)):
        raise UnknownLayout(
            f"{shown(name)} is made for {made_for(config)}; the model is {family.name}"
        )
