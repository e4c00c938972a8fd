"""Names of language models in GGUF files as llama.cpp writes them → transformers' names.

Only what encodes text for a supported family is read: T5's encoder and Qwen3, whose weights
llama.cpp leaves as they are; other architectures, of which it permutes some, are refused by name.
https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
"""

import re
from collections.abc import Iterable, Mapping
from typing import NoReturn

from txt2img.errors import UnknownLayout
from txt2img.system.text import shown

# Beginnings of the names of language models, of which image models have none.
SIGNS = ("blk.0.", "enc.blk.0.", "dec.blk.0.", "token_embd.")
LAYER = re.compile(r"(?:enc\.)?blk\.(\d+)\.(\w+)\.(weight|bias)")
_T5 = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_T5_WHOLE = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
_QWEN3 = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QWEN3_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# By the architecture that a file names: its layers' place, their parts, what is not in layers.
ARCHITECTURES: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "t5": ("encoder.block", _T5, _T5_WHOLE),
    "t5encoder": ("encoder.block", _T5, _T5_WHOLE),
    "qwen3": ("model.layers", _QWEN3, _QWEN3_WHOLE),
}
# Metadata that decides what a model computes, and the values that text encoders have.
FIXED = {
    "qwen3.rope.freq_base": 1e6,
    "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
    "t5.attention.layer_norm_rms_epsilon": 1e-6,
    "t5encoder.attention.layer_norm_rms_epsilon": 1e-6,
}


def published_names(
    file: str, names: Iterable[str], metadata: Mapping[str, object]
) -> dict[str, str]:
    """Transformers' names of a language model's tensors; empty for a file of another kind.

    Of a whole T5 the decoder is left out. Raises UnknownLayout.
    """
    names = list(names)
    if not any(name.startswith(SIGNS) for name in names):
        return {}
    kind = metadata.get("general.architecture", "of unknown kind")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        _refuse(file, f"{shown(kind)}, which no supported model reads")
    for key, value in FIXED.items():
        given = metadata.get(key, value)
        if not isinstance(given, int | float) or abs(given - value) > 1e-3 * value:
            _refuse(file, f'"{kind}" of another kind: its {key} is {shown(given)}, not {value:g}')
    place, parts, whole = ARCHITECTURES[kind]
    renamed = {}
    for name in names:
        layer, _, ending = name.rpartition(".")
        found = LAYER.fullmatch(name)
        if found and found[2] in parts:
            renamed[name] = f"{place}.{found[1]}.{parts[found[2]]}.{found[3]}"
        elif layer in whole:
            renamed[name] = f"{whole[layer]}.{ending}"
        elif not (place == "encoder.block" and name.startswith(("dec.", "output."))):
            renamed[name] = name  # unknown, which loading tells
    return renamed


def llama_names(names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """A text encoder's architecture, and llama.cpp's names by transformers'; empty for others.

    What llama.cpp has no name for is left out.
    """
    names = list(names)
    for arch, sign in (("t5encoder", "encoder.block.0."), ("qwen3", "model.layers.0.")):
        if not any(name.startswith(sign) for name in names):
            continue
        place, parts, whole = ARCHITECTURES[arch]
        layers = {ours: theirs for theirs, ours in parts.items()}
        others = {ours: theirs for theirs, ours in whole.items()}
        start = "enc.blk" if arch == "t5encoder" else "blk"
        found = {}
        for name in names:
            layer, _, ending = name.rpartition(".")
            number, _, part = layer.removeprefix(f"{place}.").partition(".")
            if part in layers and number.isdecimal():
                found[name] = f"{start}.{number}.{layers[part]}.{ending}"
            elif layer in others:
                found[name] = f"{others[layer]}.{ending}"
        return arch, found
    return "", {}


def _refuse(file: str, what: str) -> NoReturn:
    raise UnknownLayout(
        f"{shown(file)[1:-1]} is a language model with llama.cpp's names, {what}; text encoders as "
        f"GGUF are {', '.join(ARCHITECTURES)}"
    )
