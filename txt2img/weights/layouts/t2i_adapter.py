"""T2I-Adapter files: their config and tensors in diffusers' and the original names."""

from collections.abc import Mapping
from math import isqrt

from txt2img.errors import MissingWeights, UnknownLayout
from txt2img.models.configs import T2IAdapterConfig, UNetConfig
from txt2img.system.text import shown
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import Component, Tensors, component

PREFIX = "adapter."  # of diffusers
LEVELS = 4
# Channels after the pixels of a cell became such: those of a picture, and a cell's side.
PIXELS = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
XL_SIDE = 16


def is_t2i_adapter(tensors: Tensors) -> bool:
    """Whether tensors are a T2I-Adapter's: these have bodies of pairs of convolutions."""
    bare = {name.removeprefix(PREFIX) for name in tensors}
    firsts = ("body.0.block1.weight", "body.0.resnets.0.block1.weight")
    return any(first in bare for first in (*firsts, "body.0.body.0.block1.weight"))


def t2i_adapter_in(tensors: Tensors, name: str) -> tuple[T2IAdapterConfig, Component]:
    """The config of a T2I-Adapter's tensors and these under diffusers' names.

    UnknownLayout, MissingWeights.
    """
    prefix = PREFIX if all(one.startswith(PREFIX) for one in tensors) else ""
    tensors = {one.removeprefix(prefix): ref for one, ref in tensors.items()}
    part = component(tensors, _from_original(tensors), prefix)
    return _config({one: ref.shape for one, ref in part.tensors.items()}, name), part


def _from_original(tensors: Tensors) -> key_maps.Table:
    """The original names → diffusers', which numbers residual blocks within their level."""
    if "body.0.block1.weight" not in tensors:
        names = {tuple(one.split(".")[1:4:2]) for one in tensors if ".body." in one}
        return {f"body.{level}.body.{i}": f"body.{level}.resnets.{i}" for level, i in names}
    count = len({one.split(".")[1] for one in tensors if one.startswith("body.")})
    layers = max(count // LEVELS, 1)
    table: key_maps.Table = {}
    for place in range(count):
        level, i = divmod(place, layers)
        if i == 0:
            table[f"body.{place}.in_conv"] = f"body.{level}.in_conv"
        for block in ("block1", "block2"):
            table[f"body.{place}.{block}"] = f"body.{level}.resnets.{i}.{block}"
    return table


def _config(shapes: Mapping[str, tuple[int, ...]], name: str) -> T2IAdapterConfig:
    """The config that the tensors' shapes tell. MissingWeights, UnknownLayout."""
    light = "body.0.out_conv.weight" in shapes
    last = "out_conv.weight" if light else "resnets.0.block1.weight"
    ends = [shapes.get(f"body.{level}.{last}", ()) for level in range(LEVELS)]
    first = shapes.get("body.0.in_conv.weight" if light else "conv_in.weight", ())
    if any(len(shape) != 4 or not all(shape) for shape in [first, *ends]):
        raise MissingWeights(f"{shown(name)} is no whole T2I-Adapter: {LEVELS} levels are needed")
    channels = tuple(shape[0] for shape in ends)
    in_channels, side = PIXELS.get(first[1], (3, isqrt(first[1] // 3)))
    if side < 1 or in_channels * side**2 != first[1]:
        raise UnknownLayout(f"{shown(name)}: a T2I-Adapter of {first[1]} channels is not known")
    layers = len({n.split(".")[3] for n in shapes if n.startswith("body.0.resnets.")})
    downs = (2,) if side == XL_SIDE and not light else tuple(range(1, LEVELS))
    return T2IAdapterConfig(channels, layers, in_channels, side, downs, light)


def made_for(config: T2IAdapterConfig) -> str:
    """The family that a T2I-Adapter is for."""
    return "Stable Diffusion XL" if config.unshuffle == XL_SIDE else "Stable Diffusion 1"


def check_fits(config: T2IAdapterConfig, unet: UNetConfig, name: str, family: str) -> None:
    """Raise UnknownLayout for a T2I-Adapter that was made for another U-Net."""
    levels = len(unet.channels)
    maps = [*unet.channels, unet.channels[-1]][:LEVELS]  # XL has three levels, and the middle
    halves_early = levels < LEVELS  # XL's first level is halved before features are added
    if list(config.channels) != maps or (config.unshuffle == XL_SIDE) != halves_early:
        raise UnknownLayout(f"{shown(name)} is made for {made_for(config)}; the model is {family}")
