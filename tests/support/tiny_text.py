"""Tiny text encoders with random weights, made by transformers: CLIP-L, CLIP-G, T5, Qwen3.

Their vocabularies are the published ones, so that any prompt can be encoded.
"""

from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from txt2img.models.text_tokenizer import TextTokenizer
from txt2img.weights.text_tokenizer_files import qwen_tokenizer, t5_tokenizer

Network = TypeVar("Network", bound=nn.Module)

CLIP = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "num_attention_heads": 1,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
# The part of Qwen3's template that one message of a user goes through.
TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def scattered(network: Network, seed: int) -> Network:
    """The network with weights that make all of its states differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        spread = torch.randn(weight.shape, generator=generator) * 0.3
        is_norm = weight.ndim == 1 and name.endswith("weight")
        weight.data = 1 + 0.3 * spread if is_norm else spread
    return network.eval().requires_grad_(False)


@cache
def clip_l(projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """CLIP-L: FLUX.1's without a projection, Stable Diffusion 3's with one."""
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    sizes = {"hidden_size": 16, "intermediate_size": 24, "projection_dim": 16}
    config = CLIPTextConfig(**CLIP, **sizes, num_hidden_layers=3, hidden_act="quick_gelu")
    return scattered(kind(config), 1)


@cache
def clip_g() -> CLIPTextModelWithProjection:
    """CLIP-G."""
    sizes = {"hidden_size": 12, "intermediate_size": 20, "projection_dim": 12}
    config = CLIPTextConfig(**CLIP, **sizes, num_hidden_layers=4, hidden_act="gelu")
    return scattered(CLIPTextModelWithProjection(config), 2)


@cache
def t5(width: int = 32) -> T5EncoderModel:
    """T5's encoder."""
    config = T5Config(
        vocab_size=32128,
        d_model=width,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    return scattered(T5EncoderModel(config), 3)


@cache
def qwen3(layers: int = 4) -> Qwen3ForCausalLM:
    """Qwen3 as a whole language model."""
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return scattered(Qwen3ForCausalLM(config), 4)


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors as its published file has them: each once."""
    once: dict[int, str] = {}
    state = network.state_dict()
    for name, value in state.items():
        once.setdefault(value.data_ptr(), name)
    return {name: state[name].contiguous() for name in once.values()}


@cache
def their_t5_tokenizer() -> PreTrainedTokenizerFast:
    """Transformers' tokenizer of T5, for diffusers' pipelines."""
    return wrapped(t5_tokenizer(77), eos_token="</s>", pad_token="<pad>")


@cache
def their_qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Transformers' tokenizer of Qwen3, for diffusers' pipelines."""
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return wrapped(qwen_tokenizer(77), chat_template=TEMPLATE, **tokens)


def wrapped(tokenizer: TextTokenizer, **settings: str) -> PreTrainedTokenizerFast:
    """Our tokenizer as one of transformers, which tests elsewhere hold equal to its own."""
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(tokenizer._backend.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=copy, padding_side="right", **settings)
