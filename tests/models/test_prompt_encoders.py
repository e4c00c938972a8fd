"""Prompt encoders of diffusion transformers, against diffusers' pipelines on tiny encoders."""

from functools import partial

import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from diffusers.models import SD3Transformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from tests.support import tiny, tiny_text
from tests.support.loaded import loaded
from txt2img.models.clip import TextEncoder
from txt2img.models.configs import Qwen3TextConfig, T5TextConfig, TextConfig
from txt2img.models.prompt_encoders import Flux2Text, FluxText, SD3Text, ZImageText
from txt2img.models.qwen3 import Qwen3TextEncoder
from txt2img.models.t5 import T5TextEncoder
from txt2img.models.tokenizer import EOS
from txt2img.request.compat import PromptRules
from txt2img.weights.formats import safetensors_file
from txt2img.weights.layouts import text_key_maps
from txt2img.weights.layouts.components import text_component
from txt2img.weights.text_tokenizer_files import qwen_tokenizer, t5_tokenizer
from txt2img.weights.tokenizer_files import clip_tokenizer

PROMPTS = ("a red apple", "", "a very long prompt of many words, " * 90, "猫 (word:1.2) [x] 🐈")
TEXT = PromptRules("text", truncate=True)  # diffusers' rules


@pytest.fixture
def clip(tmp_path):
    """Our CLIP with the tensors of transformers', from a file."""

    def build(theirs, pad: str, **settings) -> TextEncoder:
        c = theirs.config
        config = TextConfig(
            width=c.hidden_size,
            layers=c.num_hidden_layers,
            heads=1,
            mlp=c.intermediate_size,
            act=c.hidden_act,
            **settings,
        )
        save_file(tiny_text.tensors_of(theirs), tmp_path / f"{c.hidden_size}.safetensors")
        stored = safetensors_file.header(tmp_path / f"{c.hidden_size}.safetensors").tensors
        part = text_component(stored, "", config)
        return loaded(partial(TextEncoder, config, clip_tokenizer(77, pad)), part)

    return build


@pytest.fixture
def t5(tmp_path):
    """Our T5 with the tensors of transformers', from a file."""

    def build(length: int) -> T5TextEncoder:
        save_file(tiny_text.tensors_of(tiny_text.t5()), tmp_path / "t5.safetensors")
        stored = safetensors_file.header(tmp_path / "t5.safetensors").tensors
        config = text_key_maps.t5_config(stored, length=length)
        part = text_key_maps.t5_component(stored, "", config)
        return loaded(partial(T5TextEncoder, config, t5_tokenizer(length)), part)

    return build


@pytest.fixture
def qwen3(tmp_path):
    """Our Qwen3 with the tensors of transformers', from a file."""

    def build(taps: tuple[int, ...], length: int = 512) -> Qwen3TextEncoder:
        save_file(tiny_text.tensors_of(tiny_text.qwen3()), tmp_path / "qwen.safetensors")
        stored = safetensors_file.header(tmp_path / "qwen.safetensors").tensors
        config = text_key_maps.qwen3_config(stored, taps=taps, length=length)
        part = text_key_maps.qwen3_component(stored, "", config)
        return loaded(partial(Qwen3TextEncoder, config, qwen_tokenizer(length)), part)

    return build


@pytest.fixture(scope="module")
def their_clip_tokenizers(tmp_path_factory):
    """transformers' CLIP tokenizers, as Stable Diffusion 3 pads: by the end token, and by "!"."""
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    tiny.write_tokenizer(folder, clip_tokenizer(77, EOS))
    return tuple(CLIPTokenizer.from_pretrained(folder, pad_token=pad) for pad in (EOS, "!"))


def close(ours, theirs) -> None:
    """Compare to 1e-5, relative to the greatest value."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("length", [512, 256])
def test_flux_equals_diffusers(clip, t5, their_clip_tokenizers, prompt, length):
    theirs = tiny_text.clip_l(projected=False)
    ours = FluxText([clip(theirs, EOS, pooled=True), t5(length)])
    pipeline = FluxPipeline(
        None, None, theirs, their_clip_tokenizers[0], tiny_text.t5(), THEIR_T5(), None
    )
    tokens, pooled, _ = pipeline.encode_prompt(prompt, max_sequence_length=length, device="cpu")
    cond = ours.encode([prompt], rules=TEXT)
    close(cond.tokens, tokens)
    close(cond.pooled, pooled)


THEIR_T5 = tiny_text.their_t5_tokenizer


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("with_t5", [True, False])
def test_sd3_equals_diffusers(clip, t5, their_clip_tokenizers, prompt, with_t5):
    first, second = tiny_text.clip_l(projected=True), tiny_text.clip_g()
    clips = [
        clip(first, EOS, penultimate=True, projection=16),
        clip(second, "!", penultimate=True, projection=12),
    ]
    ours = SD3Text([*clips, t5(256)] if with_t5 else clips, width=32)
    network = SD3Transformer2DModel(
        num_layers=1, attention_head_dim=8, num_attention_heads=1, joint_attention_dim=32
    )
    l_tokenizer, g_tokenizer = their_clip_tokenizers
    pipeline = StableDiffusion3Pipeline(
        transformer=network,
        scheduler=None,
        vae=None,
        text_encoder=first,
        tokenizer=l_tokenizer,
        text_encoder_2=second,
        tokenizer_2=g_tokenizer,
        text_encoder_3=tiny_text.t5() if with_t5 else None,
        tokenizer_3=THEIR_T5() if with_t5 else None,
    )
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt, None, None, device="cpu", do_classifier_free_guidance=False
    )
    cond = ours.encode([prompt], rules=TEXT)
    close(cond.tokens, tokens)
    close(cond.pooled, pooled)


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_z_image_equals_diffusers(qwen3, prompt):
    ours = ZImageText([qwen3((-2,))])
    pipeline = ZImagePipeline(
        None, None, tiny_text.qwen3().model, tiny_text.their_qwen_tokenizer(), None
    )
    [[tokens], _] = pipeline.encode_prompt(
        [prompt], device="cpu", do_classifier_free_guidance=False
    )
    close(ours.encode([prompt]).tokens[0], tokens)


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_flux2_klein_equals_diffusers(qwen3, prompt):
    ours = Flux2Text([qwen3((1, 2, 3))])
    pipeline = Flux2KleinPipeline(
        None, None, tiny_text.qwen3(), tiny_text.their_qwen_tokenizer(), None
    )
    tokens, _ = pipeline.encode_prompt(prompt, device="cpu", text_encoder_out_layers=(1, 2, 3))
    close(ours.encode([prompt]).tokens, tokens)


@torch.inference_mode()
def test_flux2_batches_prompts_of_any_length(qwen3):
    ours = Flux2Text([qwen3((1, 2), length=40)])
    both = ours.encode(PROMPTS[:2]).tokens
    close(both, torch.cat([ours.encode([prompt]).tokens for prompt in PROMPTS[:2]]))


@torch.inference_mode()
def test_t5_weights_scale_the_way_from_the_empty_prompt(t5):
    ours = t5(16)
    plain, empty = ours.encode(["red apple"]), ours.encode([""])
    heavy = ours.encode(["(red apple:1.5)"], PromptRules("a1111"))
    count = len(ours.tokenizer.tokens("red apple"))
    close(heavy[:, :count], (empty + 1.5 * (plain - empty))[:, :count])
    close(heavy[:, count:], plain[:, count:])
    literal = ours.encode(["(red apple:1.5)"], TEXT)
    assert not torch.allclose(literal, heavy)


@torch.inference_mode()
def test_qwen3_keeps_its_rotary_frequencies_in_any_dtype(qwen3):
    ours = qwen3((-2,))
    expected = ours.model.rotary_emb.inv_freq.clone()
    ours.to(torch.bfloat16).float()
    ours.encode(["a red apple"], thinking=True, padded=False)
    torch.testing.assert_close(ours.model.rotary_emb.inv_freq, expected, rtol=0, atol=0)


def test_configs_of_transformers_and_of_shapes_agree(t5, qwen3):
    c = tiny_text.t5().config.to_dict()
    assert text_key_maps.t5_from_transformers(c, length=9) == t5(9).config
    c = tiny_text.qwen3().config.to_dict()
    assert text_key_maps.qwen3_from_transformers(c, taps=(1, 2)) == qwen3((1, 2)).config
    assert isinstance(T5TextConfig().width, int) and Qwen3TextConfig().width == 2560
