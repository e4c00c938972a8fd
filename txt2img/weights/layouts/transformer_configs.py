"""Configs of diffusion transformers: from the tensors of a single file, and from diffusers'."""

from collections.abc import Mapping
from math import prod

from txt2img.errors import UnknownLayout
from txt2img.models.configs import FluxConfig
from txt2img.system.text import shown
from txt2img.weights.formats.json_values import Config, check_class, check_fixed, flag, integer
from txt2img.weights.formats.safetensors_file import TensorRef

Tensors = Mapping[str, TensorRef]
BLOCKS_MAX, HEADS_MAX, WIDTH_MAX = 256, 256, 65536
PATCH = 4  # latent cells of a 2×2 patch


def shape_of(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that the architecture needs. Raises UnknownLayout."""
    if name not in tensors:
        raise UnknownLayout(f"transformer: {name} is missing")
    shape = tensors[name].shape
    if len(shape) != dimensions or not prod(shape):
        raise UnknownLayout(f"transformer: {name} has the shape {shape}")
    return shape


def block_count(tensors: Tensors, prefix: str) -> int:
    """The number of blocks that are named `prefix`.0, `prefix`.1 and so on."""
    start = prefix.count(".") + 1
    found = {name.split(".")[start] for name in tensors if name.startswith(f"{prefix}.")}
    return next(count for count in range(len(found) + 1) if str(count) not in found)


def heads_of(width: int, head_dim: int) -> int:
    """The number of heads. Raises UnknownLayout unless they fill the width."""
    if width % head_dim:
        raise UnknownLayout(f"transformer: width {width} is no multiple of a head's {head_dim}")
    return width // head_dim


def patches_of(features: int, name: str) -> int:
    """Channels of 2×2 patches of so many features. Raises UnknownLayout."""
    if features % PATCH:
        raise UnknownLayout(f"transformer: {name} has {features} features, no multiple of {PATCH}")
    return features // PATCH


def checked_axes(axes: tuple[int, ...], head_dim: int) -> tuple[int, ...]:
    """The axes of the rotary embedding. Raises UnknownLayout unless they fill a head."""
    if sum(axes) != head_dim or any(axis % 2 for axis in axes):
        raise UnknownLayout(f"transformer: axes {axes} of positions for a head of {head_dim}")
    return axes


def axes_of(config: Config, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """The rotary embedding's axes in diffusers' config. Raises UnknownLayout, BadFile."""
    value = config.get(key, default)
    if not isinstance(value, list | tuple) or len(value) != len(default):
        raise UnknownLayout(
            f"transformer: {key} is {shown(value)}; it must be {len(default)} whole numbers"
        )
    return tuple(integer({key: item}, key, 0, 2, 1024) for item in value)


def flux_config(tensors: Tensors) -> FluxConfig:
    """FLUX.1's config from a single file's tensors, without prefix. Raises UnknownLayout."""
    width, inputs = shape_of(tensors, "img_in.weight", 2)
    norm = "double_blocks.0.img_attn.norm.key_norm"
    found = f"{norm}.scale" if f"{norm}.scale" in tensors else f"{norm}.weight"
    head_dim = shape_of(tensors, found, 1)[0]
    outputs = shape_of(tensors, "final_layer.linear.weight", 2)[0]
    return FluxConfig(
        in_channels=patches_of(inputs, "img_in"),
        out_channels=patches_of(outputs, "final_layer.linear"),
        double_blocks=block_count(tensors, "double_blocks"),
        single_blocks=block_count(tensors, "single_blocks"),
        heads=heads_of(width, head_dim),
        head_dim=head_dim,
        cross_dim=shape_of(tensors, "txt_in.weight", 2)[1],
        pooled=shape_of(tensors, "vector_in.in_layer.weight", 2)[1],
        embeds_guidance="guidance_in.in_layer.weight" in tensors,
        axes=checked_axes(FluxConfig.axes, head_dim),
    )


def flux_from_diffusers(config: Config) -> FluxConfig:
    """FLUX.1's config from diffusers'. Raises UnknownLayout, BadFile."""
    check_class(config, "transformer", ("FluxTransformer2DModel",))
    check_fixed(config, "transformer", {"patch_size": 1})
    inputs = integer(config, "in_channels", 64, 1, WIDTH_MAX)
    given = config.get("out_channels") is not None
    outputs = integer(config, "out_channels", 64, 1, WIDTH_MAX) if given else inputs
    head_dim = integer(config, "attention_head_dim", 128, 2, 1024)
    return FluxConfig(
        in_channels=patches_of(inputs, "in_channels"),
        out_channels=patches_of(outputs, "out_channels"),
        double_blocks=integer(config, "num_layers", 19, 0, BLOCKS_MAX),
        single_blocks=integer(config, "num_single_layers", 38, 0, BLOCKS_MAX),
        heads=integer(config, "num_attention_heads", 24, 1, HEADS_MAX),
        head_dim=head_dim,
        cross_dim=integer(config, "joint_attention_dim", 4096, 1, WIDTH_MAX),
        pooled=integer(config, "pooled_projection_dim", 768, 1, WIDTH_MAX),
        embeds_guidance=flag(config, "guidance_embeds", False),
        axes=checked_axes(axes_of(config, "axes_dims_rope", (16, 56, 56)), head_dim),
    )
