"""Configs of diffusion transformers: from the tensors of a single file, and from diffusers'."""

from functools import partial
from math import isqrt

from txt2img.errors import BadFile, UnknownLayout
from txt2img.models.configs import Flux2Config, FluxConfig, SD3Config, ZImageConfig
from txt2img.system.text import shown
from txt2img.weights.formats.json_values import Config, check_class, check_fixed, flag, integer
from txt2img.weights.layouts.components import Tensors, shape_of

BLOCKS_MAX, HEADS_MAX, WIDTH_MAX = 256, 256, 65536
PATCH = 4  # latent cells of a 2×2 patch
_shape = partial(shape_of, "transformer")
FLUX_NORM = tuple(f"double_blocks.0.img_attn.norm.key_norm.{kind}" for kind in ("scale", "weight"))
SD3_HEAD = 64  # where no norm tells


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


def optional(config: Config, key: str, default: int) -> int:
    """A number that may be null for the default. Raises BadFile."""
    given = config.get(key) is not None
    return integer(config, key, default, 1, WIDTH_MAX) if given else default


def layer_list(config: Config, key: str, layers: int) -> tuple[int, ...]:
    """Numbers of blocks, in order. Raises BadFile."""
    value = config.get(key, ())
    if not isinstance(value, list | tuple):
        raise BadFile(f"{key} is {shown(value)}; it must be a list of whole numbers")
    return tuple(sorted({integer({key: item}, key, 0, 0, layers - 1) for item in value}))


def flux_config(tensors: Tensors) -> FluxConfig:
    """FLUX.1's config from a single file's tensors, without prefix. Raises UnknownLayout."""
    width, inputs = _shape(tensors, "img_in.weight", 2)
    [head_dim] = _shape(tensors, FLUX_NORM, 1)
    outputs = _shape(tensors, "final_layer.linear.weight", 2)[0]
    return FluxConfig(
        in_channels=patches_of(inputs, "img_in"),
        out_channels=patches_of(outputs, "final_layer.linear"),
        double_blocks=block_count(tensors, "double_blocks"),
        single_blocks=block_count(tensors, "single_blocks"),
        heads=heads_of(width, head_dim),
        head_dim=head_dim,
        cross_dim=_shape(tensors, "txt_in.weight", 2)[1],
        pooled=_shape(tensors, "vector_in.in_layer.weight", 2)[1],
        embeds_guidance="guidance_in.in_layer.weight" in tensors,
        axes=checked_axes(FluxConfig.axes, head_dim),
    )


def flux_from_diffusers(config: Config) -> FluxConfig:
    """FLUX.1's config from diffusers'. Raises UnknownLayout, BadFile."""
    check_class(config, "transformer", ("FluxTransformer2DModel",))
    check_fixed(config, "transformer", {"patch_size": 1})
    inputs = integer(config, "in_channels", 64, 1, WIDTH_MAX)
    outputs = optional(config, "out_channels", inputs)
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


def flux2_config(tensors: Tensors) -> Flux2Config:
    """FLUX.2's config from a single file's tensors, without prefix. Raises UnknownLayout."""
    width, inputs = _shape(tensors, "img_in.weight", 2)
    [head_dim] = _shape(tensors, FLUX_NORM, 1)
    return Flux2Config(
        in_channels=inputs,
        out_channels=_shape(tensors, "final_layer.linear.weight", 2)[0],
        double_blocks=block_count(tensors, "double_blocks"),
        single_blocks=block_count(tensors, "single_blocks"),
        heads=heads_of(width, head_dim),
        head_dim=head_dim,
        cross_dim=_shape(tensors, "txt_in.weight", 2)[1],
        embeds_guidance="guidance_in.in_layer.weight" in tensors,
        axes=checked_axes(Flux2Config.axes, head_dim),
    )


def flux2_from_diffusers(config: Config) -> Flux2Config:
    """FLUX.2's config from diffusers'. Raises UnknownLayout, BadFile."""
    check_class(config, "transformer", ("Flux2Transformer2DModel",))
    fixed: Config = {
        "patch_size": 1,
        "timestep_guidance_channels": 256,
        "mlp_ratio": 3.0,
        "rope_theta": 2000,
        "eps": 1e-6,
    }
    check_fixed(config, "transformer", fixed)
    inputs = integer(config, "in_channels", 128, 1, WIDTH_MAX)
    head_dim = integer(config, "attention_head_dim", 128, 2, 1024)
    return Flux2Config(
        in_channels=inputs,
        out_channels=optional(config, "out_channels", inputs),
        double_blocks=integer(config, "num_layers", 8, 0, BLOCKS_MAX),
        single_blocks=integer(config, "num_single_layers", 48, 0, BLOCKS_MAX),
        heads=integer(config, "num_attention_heads", 48, 1, HEADS_MAX),
        head_dim=head_dim,
        cross_dim=integer(config, "joint_attention_dim", 15360, 1, WIDTH_MAX),
        embeds_guidance=flag(config, "guidance_embeds", True),
        axes=checked_axes(axes_of(config, "axes_dims_rope", (32, 32, 32, 32)), head_dim),
    )


def sd3_config(tensors: Tensors) -> SD3Config:
    """Stable Diffusion 3's config from a single file's tensors, without prefix.

    Raises UnknownLayout.
    """
    width, inputs = _shape(tensors, "x_embedder.proj.weight", 4)[:2]
    outputs = _shape(tensors, "final_layer.linear.weight", 2)[0]
    layers, attention = block_count(tensors, "joint_blocks"), "joint_blocks.0.x_block.attn"
    qk_norm = f"{attention}.ln_q.weight" in tensors
    head_dim = _shape(tensors, f"{attention}.ln_q.weight", 1)[0] if qk_norm else SD3_HEAD
    return SD3Config(
        in_channels=inputs,
        out_channels=patches_of(outputs, "final_layer.linear"),
        layers=layers,
        heads=heads_of(width, head_dim),
        head_dim=head_dim,
        cross_dim=_shape(tensors, "context_embedder.weight", 2)[1],
        pooled=_shape(tensors, "y_embedder.mlp.0.weight", 2)[1],
        positions=isqrt(_shape(tensors, "pos_embed", 3)[1]),
        dual_layers=tuple(
            index
            for index in range(layers)
            if f"joint_blocks.{index}.x_block.attn2.qkv.weight" in tensors
        ),
        qk_norm=qk_norm,
    )


def sd3_from_diffusers(config: Config) -> SD3Config:
    """Stable Diffusion 3's config from diffusers'. Raises UnknownLayout, BadFile."""
    check_class(config, "transformer", ("SD3Transformer2DModel",))
    heads = integer(config, "num_attention_heads", 18, 1, HEADS_MAX)
    head_dim = integer(config, "attention_head_dim", 64, 2, 1024)
    text = {"caption_projection_dim": 1152} | dict(config)
    check_fixed(text, "transformer", {"patch_size": 2, "caption_projection_dim": heads * head_dim})
    norm = config.get("qk_norm")
    if norm is not None:
        check_fixed(config, "transformer", {"qk_norm": "rms_norm"})
    layers = integer(config, "num_layers", 18, 1, BLOCKS_MAX)
    inputs = integer(config, "in_channels", 16, 1, WIDTH_MAX)
    return SD3Config(
        in_channels=inputs,
        out_channels=optional({"out_channels": 16} | dict(config), "out_channels", inputs),
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        cross_dim=integer(config, "joint_attention_dim", 4096, 1, WIDTH_MAX),
        pooled=integer(config, "pooled_projection_dim", 2048, 1, WIDTH_MAX),
        positions=integer(config, "pos_embed_max_size", 96, 1, 4096),
        dual_layers=layer_list(config, "dual_attention_layers", layers),
        qk_norm=norm is not None,
    )


def z_image_config(tensors: Tensors) -> ZImageConfig:
    """Z-Image's config from a single file's tensors, without prefix. Raises UnknownLayout."""
    width, inputs = _shape(tensors, "x_embedder.weight", 2)
    outputs = _shape(tensors, "final_layer.linear.weight", 2)[0]
    [head_dim] = _shape(tensors, "layers.0.attention.q_norm.weight", 1)
    return ZImageConfig(
        in_channels=patches_of(inputs, "x_embedder"),
        out_channels=patches_of(outputs, "final_layer.linear"),
        layers=block_count(tensors, "layers"),
        refiner_layers=block_count(tensors, "noise_refiner"),
        heads=heads_of(width, head_dim),
        head_dim=head_dim,
        cross_dim=_shape(tensors, "cap_embedder.1.weight", 2)[1],
        axes=checked_axes(ZImageConfig.axes, head_dim),
    )


def z_image_from_diffusers(config: Config) -> ZImageConfig:
    """Z-Image's config from diffusers'. Raises UnknownLayout, BadFile."""
    check_class(config, "transformer", ("ZImageTransformer2DModel",))
    heads = integer(config, "n_heads", 30, 1, HEADS_MAX)
    lists: Config = {
        key: list(value) if isinstance(value := config.get(key, default), tuple) else value
        for key, default in (("all_patch_size", [2]), ("all_f_patch_size", [1]))
    }
    fixed: Config = {
        "n_kv_heads": heads,
        "norm_eps": 1e-5,
        "qk_norm": True,
        "siglip_feat_dim": None,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
    }
    check_fixed(lists, "transformer", {"all_patch_size": [2], "all_f_patch_size": [1]})
    check_fixed({"n_kv_heads": 30} | dict(config), "transformer", fixed)
    width = integer(config, "dim", 3840, 1, WIDTH_MAX)
    if width % heads:
        raise UnknownLayout(f"transformer: dim {width} is no multiple of {heads} heads")
    channels = integer(config, "in_channels", 16, 1, WIDTH_MAX)
    return ZImageConfig(
        in_channels=channels,
        out_channels=channels,
        layers=integer(config, "n_layers", 30, 0, BLOCKS_MAX),
        refiner_layers=integer(config, "n_refiner_layers", 2, 0, BLOCKS_MAX),
        heads=heads,
        head_dim=width // heads,
        cross_dim=integer(config, "cap_feat_dim", 2560, 1, WIDTH_MAX),
        axes=checked_axes(axes_of(config, "axes_dims", (32, 48, 48)), width // heads),
    )
