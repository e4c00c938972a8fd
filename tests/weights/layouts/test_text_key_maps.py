"""Language models' files: every published tensor has its place, whatever prefix it comes with."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from tests.support import tiny_text
from tests.support.loaded import loaded, on_meta
from txt2img.errors import BadFile, MissingWeights, UnknownLayout
from txt2img.models.clip import TextEncoder
from txt2img.models.configs import QWEN3_8B, Qwen3TextConfig, T5TextConfig, TextConfig
from txt2img.models.qwen3 import Qwen3TextEncoder
from txt2img.models.t5 import T5TextEncoder
from txt2img.weights.families import XL_BIG_G
from txt2img.weights.formats import safetensors_file
from txt2img.weights.formats.safetensors_file import TensorRef
from txt2img.weights.layouts import text_key_maps
from txt2img.weights.layouts.components import text_component
from txt2img.weights.layouts.text_key_maps import (
    PREFIXES,
    qwen3_component,
    qwen3_config,
    t5_component,
    t5_config,
    text_encoders,
)
from txt2img.weights.text_tokenizer_files import qwen_tokenizer, t5_tokenizer
from txt2img.weights.tokenizer_files import clip_tokenizer

Refs = dict[str, TensorRef]
FLUX2_TAPS = (9, 18, 27)


def refs(network: nn.Module, prefix: str = "", dtype: str = "F16") -> Refs:
    """A file's tensors with the names and shapes of a network."""
    return {
        prefix + n: TensorRef(Path("x"), prefix + n, dtype, tuple(v.shape), 0)
        for n, v in network.state_dict().items()
    }


def t5_xxl() -> T5ForConditionalGeneration:
    """The whole T5-XXL 1.1, decoder and all, on the meta device."""
    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return T5ForConditionalGeneration(config)


def qwen3(hidden: int, mlp: int) -> Qwen3ForCausalLM:
    """Qwen3-4B or 8B on the meta device."""
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    with torch.device("meta"):
        return Qwen3ForCausalLM(config)


@pytest.mark.parametrize("prefix", ["", PREFIXES["t5xxl"]])
def test_t5_xxl_whole_and_its_encoder(prefix):
    whole = refs(t5_xxl(), prefix)
    encoder = {n: ref for n, ref in whole.items() if not n.startswith((f"{prefix}d", f"{prefix}l"))}
    assert len(encoder) == 220
    once = f"{prefix}encoder.embed_tokens.weight", f"{prefix}shared.weight"
    files = [whole, encoder, *({n: r for n, r in encoder.items() if n != one} for one in once)]
    for tensors in files:
        assert text_encoders(tensors) == {prefix: "t5"}
        config = t5_config(tensors, prefix)
        assert config == T5TextConfig()
        part = t5_component(tensors, prefix, config)
        network = on_meta(partial(T5TextEncoder, config, t5_tokenizer(512)), part)
        assert len(network.state_dict()) == 219
        assert part.file_name("encoder.final_layer_norm.weight").startswith(f"{prefix}encoder.")


@pytest.mark.parametrize("taps", [(-2,), FLUX2_TAPS])
@pytest.mark.parametrize(("name", "own"), [("4b", Qwen3TextConfig()), ("8b", QWEN3_8B)])
def test_qwen3_up_to_the_last_tapped_layer(name, own, taps):
    model = qwen3(own.hidden, own.mlp)
    prefix = PREFIXES[f"qwen3_{name}"]
    for tensors, start in (
        (refs(model), ""),
        (refs(model.model), ""),
        (refs(model, prefix), prefix),
    ):
        assert text_encoders(tensors) == {start: "qwen3"}
        config = qwen3_config(tensors, start, taps)
        assert (config.hidden, config.mlp, config.layers) == (own.hidden, own.mlp, 36)
        assert config.width == own.hidden * len(taps)
        part = qwen3_component(tensors, start, config)
        network = on_meta(partial(Qwen3TextEncoder, config, qwen_tokenizer(512)), part)
        layers = 35 if taps == (-2,) else 27
        assert len(network.state_dict()) == 11 * layers + 1  # and the token vectors


def test_comfyuis_whole_checkpoint():
    clip_l = TextConfig(pooled=True)
    clip_g = XL_BIG_G
    with torch.device("meta"):
        big = Qwen3TextEncoder(Qwen3TextConfig(layers=2), qwen_tokenizer(512))
    names = {f"{PREFIXES['clip_l']}text_model.{n}": r for n, r in clip_refs(clip_l).items()}
    names |= {f"{PREFIXES['clip_g']}text_model.{n}": r for n, r in clip_refs(clip_g).items()}
    projection = {"clip_l": (768, 768), "clip_g": (1280, 1280)}
    for clip, shape in projection.items():
        key = f"{PREFIXES[clip]}text_projection.weight"
        names.pop(f"{PREFIXES[clip]}text_model.text_projection.weight", None)
        names[key] = TensorRef(Path("x"), key, "F16", shape, 0)
    names |= {f"{PREFIXES['qwen3_4b']}{n}": r for n, r in refs(big).items()}
    for name in text_key_maps.LEFTOVERS:
        names[name] = TensorRef(Path("x"), name, "F32", (), 0)
    kept = safetensors_names(names)
    assert text_encoders(kept) == {
        PREFIXES["clip_l"]: "clip",
        PREFIXES["clip_g"]: "clip",
        PREFIXES["qwen3_4b"]: "qwen3",
    }
    for clip, config, pad in (("clip_l", clip_l, "<|endoftext|>"), ("clip_g", clip_g, "!")):
        part = text_component(kept, PREFIXES[clip], config)
        on_meta(partial(TextEncoder, config, clip_tokenizer(77, pad)), part)


def safetensors_names(names: Refs) -> Refs:
    """The names of a file without what ComfyUI saves beside them."""
    return text_key_maps.key_maps.without_leftovers(names, text_key_maps.LEFTOVERS)


def clip_refs(config: TextConfig) -> Refs:
    """A CLIP's tensors, as transformers names them after `text_model.`."""
    with torch.device("meta"):
        network = TextEncoder(config, clip_tokenizer(77, "!"))
    return {n.removeprefix("model."): ref for n, ref in refs(network).items()}


def test_scaled_8_bit_weights_are_multiplied(tmp_path):
    whole = tiny_text.tensors_of(tiny_text.t5())
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    narrow = (whole[name] / 4).to(torch.float8_e4m3fn)
    scaled = {name: narrow, name.replace("weight", "scale_weight"): torch.tensor(4.0)}
    extra = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    save_file(whole | scaled | extra, tmp_path / "t5xxl_fp8.safetensors")
    stored = safetensors_file.header(tmp_path / "t5xxl_fp8.safetensors").tensors
    config = t5_config(stored, length=16)
    part = t5_component(stored, "", config)
    network = loaded(partial(T5TextEncoder, config, t5_tokenizer(16)), part)
    torch.testing.assert_close(network.get_parameter(f"model.{name}").data, narrow.float() * 4)


def test_files_that_lack_something_are_refused():
    with pytest.raises(UnknownLayout, match="relative_attention_bias"):
        t5_config({})
    tensors = refs(tiny_text.qwen3())
    with pytest.raises(UnknownLayout, match="of 4 layers: the states 9, 18, 27"):
        qwen3_config(tensors, taps=FLUX2_TAPS)
    config = qwen3_config(tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    part = qwen3_component(tensors, "", config)
    with pytest.raises(MissingWeights, match=r"layers\.1\.mlp\.up_proj\.weight. missing"):
        on_meta(partial(Qwen3TextEncoder, config, qwen_tokenizer(16)), part)
    with pytest.raises(UnknownLayout, match=r"feed_forward_proj is .relu"):
        text_key_maps.t5_from_transformers({"feed_forward_proj": "relu"})
    with pytest.raises(UnknownLayout, match="yarn"):
        text_key_maps.qwen3_from_transformers({"rope_scaling": {"rope_type": "yarn"}})
    with pytest.raises(BadFile, match="hidden_size"):
        text_key_maps.qwen3_from_transformers({"hidden_size": -1})
