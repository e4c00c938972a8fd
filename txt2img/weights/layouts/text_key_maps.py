"""Language models' tensors and configs: T5 and Qwen3, as files in the wild have them.

Names are transformers' in all of them, after ComfyUI's prefixes in whole checkpoints.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Literal

from txt2img.errors import UnknownLayout
from txt2img.models.configs import Qwen3TextConfig, T5TextConfig
from txt2img.system.text import shown
from txt2img.weights.formats.json_values import Config, check_fixed, integer, number
from txt2img.weights.layouts import key_maps
from txt2img.weights.layouts.components import Component, Tensors, component, shape_of
from txt2img.weights.layouts.key_maps import strip_prefix

Kind = Literal["t5", "qwen3", "clip"]
_shape = partial(shape_of, "text encoder")

# ComfyUI's prefixes of the text encoders in a whole checkpoint, by what diffusers calls them; the
# file of one encoder has none.
PREFIXES = {
    "clip_l": "text_encoders.clip_l.transformer.",
    "clip_g": "text_encoders.clip_g.transformer.",
    "t5xxl": "text_encoders.t5xxl.transformer.",
    "qwen3_4b": "text_encoders.qwen3_4b.transformer.",
    "qwen3_8b": "text_encoders.qwen3_8b.transformer.",
}
# What ComfyUI saves beside the encoders' tensors.
LEFTOVERS: key_maps.Table = {
    prefix.removesuffix("transformer.") + name: None
    for prefix in PREFIXES.values()
    for name in ("logit_scale", "spiece_model", "tokenizer_json")
}
_SIGNS: dict[str, Kind] = {
    "encoder.block.0.layer.0.SelfAttention.q.weight": "t5",
    "layers.0.self_attn.q_norm.weight": "qwen3",
    "encoder.layers.0.self_attn.q_proj.weight": "clip",
    "transformer.resblocks.0.attn.in_proj_weight": "clip",
}
_STEMS = {"qwen3": "model.", "clip": "text_model."}  # left to the key maps, as some files lack them
_T5_LEFTOVERS: key_maps.Table = dict.fromkeys(("decoder", "lm_head", "spiece_model", "logit_scale"))


def text_encoders(tensors: Tensors) -> dict[str, Kind]:
    """The text encoders among tensors: the prefix of each, and its kind."""
    found: dict[str, Kind] = {}
    for name in tensors:
        for sign, kind in _SIGNS.items():
            prefix = name.removesuffix(sign)
            if prefix != name and (not prefix or prefix.endswith(".")) and "vision" not in prefix:
                found.setdefault(prefix.removesuffix(_STEMS.get(kind, "")), kind)
    return found


def t5_component(tensors: Tensors, prefix: str, config: T5TextConfig) -> Component:
    """T5's encoder after a prefix; a whole T5's decoder is left out."""
    inside = strip_prefix(tensors, prefix)
    table = _T5_LEFTOVERS | {"shared": "encoder.embed_tokens"}
    if "shared.weight" in inside:
        table |= {"encoder.embed_tokens": None}  # the same tensor, where both are stored
    return component(inside, table, prefix)


def qwen3_component(tensors: Tensors, prefix: str, config: Qwen3TextConfig) -> Component:
    """Qwen3 after a prefix, up to the last layer that the config taps."""
    inside = strip_prefix(tensors, prefix)
    is_whole = any(name.startswith("model.") for name in inside)  # a language model with its head
    stem = "model." if is_whole else ""
    table: key_maps.Table = dict.fromkeys((f"{stem}norm", "lm_head", "tokenizer_json"))
    table |= {f"{stem}layers.{layer}": None for layer in range(max(config.states), config.layers)}
    if is_whole:
        table |= {"model.layers": "layers", "model.embed_tokens": "embed_tokens"}
    return component(inside, table, prefix)


def t5_config(tensors: Tensors, prefix: str = "", length: int = 512) -> T5TextConfig:
    """T5's config by its tensors' shapes. Raises UnknownLayout."""
    inside = strip_prefix(tensors, prefix)
    first = "encoder.block.0.layer"
    bias = f"{first}.0.SelfAttention.relative_attention_bias.weight"
    buckets, heads = _shape(inside, bias)
    vocab, width = _shape(inside, ("shared.weight", "encoder.embed_tokens.weight"))
    return T5TextConfig(
        vocab=vocab,
        width=width,
        layers=_count(inside, r"encoder\.block\.(\d+)\."),
        heads=heads,
        head_width=_shape(inside, f"{first}.0.SelfAttention.q.weight")[0] // heads,
        mlp=_shape(inside, f"{first}.1.DenseReluDense.wi_0.weight")[0],
        buckets=buckets,
        length=length,
    )


def qwen3_config(
    tensors: Tensors, prefix: str = "", taps: tuple[int, ...] = (-2,), length: int = 512
) -> Qwen3TextConfig:
    """Qwen3's config by its tensors' shapes. Raises UnknownLayout."""
    inside = strip_prefix(tensors, prefix)
    inside = {name.removeprefix("model."): ref for name, ref in inside.items()}
    vocab, hidden = _shape(inside, "embed_tokens.weight")
    first = "layers.0.self_attn"
    [head_width] = _shape(inside, f"{first}.q_norm.weight", 1)
    return _checked_taps(
        Qwen3TextConfig(
            vocab=vocab,
            hidden=hidden,
            layers=_count(inside, r"layers\.(\d+)\."),
            heads=_shape(inside, f"{first}.q_proj.weight")[0] // head_width,
            kv_heads=_shape(inside, f"{first}.k_proj.weight")[0] // head_width,
            head_width=head_width,
            mlp=_shape(inside, "layers.0.mlp.gate_proj.weight")[0],
            taps=taps,
            length=length,
        )
    )


def t5_from_transformers(config: Config, length: int = 512) -> T5TextConfig:
    """T5's config of a folder's config.json. Raises BadFile, UnknownLayout."""
    fixed = {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6}
    check_fixed(config, "text encoder (T5)", fixed)
    return T5TextConfig(
        vocab=integer(config, "vocab_size", 32128, 2, 2**20),
        width=integer(config, "d_model", 4096, 1, 2**15),
        layers=integer(config, "num_layers", 24, 1, 256),
        heads=integer(config, "num_heads", 64, 1, 1024),
        head_width=integer(config, "d_kv", 64, 1, 1024),
        mlp=integer(config, "d_ff", 10240, 1, 2**17),
        buckets=integer(config, "relative_attention_num_buckets", 32, 2, 2**12),
        max_distance=integer(config, "relative_attention_max_distance", 128, 2, 2**16),
        length=length,
    )


def qwen3_from_transformers(
    config: Config, taps: tuple[int, ...] = (-2,), length: int = 512
) -> Qwen3TextConfig:
    """Qwen3's config of a folder's config.json. Raises BadFile, UnknownLayout."""
    where = "text encoder (Qwen3)"
    fixed = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False}
    check_fixed(config, where, fixed | {"use_sliding_window": False, "model_type": "qwen3"})
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or rope.get("rope_type", "default") != "default":
        raise UnknownLayout(f"{where}: rope_parameters {shown(rope)} are not supported")
    heads = integer(config, "num_attention_heads", 32, 1, 1024)
    hidden = integer(config, "hidden_size", 2560, 1, 2**15)
    return _checked_taps(
        Qwen3TextConfig(
            vocab=integer(config, "vocab_size", 151936, 2, 2**20),
            hidden=hidden,
            layers=integer(config, "num_hidden_layers", 36, 1, 256),
            heads=heads,
            kv_heads=integer(config, "num_key_value_heads", 8, 1, heads),
            head_width=integer(config, "head_dim", 128, 2, 1024),
            mlp=integer(config, "intermediate_size", 9728, 1, 2**17),
            theta=number(rope if "rope_theta" in rope else config, "rope_theta", 1e6),
            taps=taps,
            length=length,
        )
    )


def _checked_taps(config: Qwen3TextConfig) -> Qwen3TextConfig:
    """The config, if it has the layers that are tapped. Raises UnknownLayout."""
    if not all(1 <= state <= config.layers for state in config.states):
        taps = ", ".join(map(str, config.taps))
        raise UnknownLayout(
            f"a Qwen3 of {config.layers} layers: the states {taps} between its layers are needed; "
            "Qwen3-4B and 8B have 36"
        )
    if config.heads % config.kv_heads or config.head_width % 2:
        raise UnknownLayout(
            f"a Qwen3 of {config.heads} heads, {config.kv_heads} of keys, {config.head_width} wide"
        )
    return config


def _count(tensors: Tensors, pattern: str) -> int:
    """One more than the greatest number that a pattern finds in names."""
    matches = (re.match(pattern, name) for name in tensors)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
