"""Embeddings draw as in diffusers, are never split, and are removed without a trace."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from tests.support import tiny
from tests.support.adapters import kohya, pairs, write
from txt2img.errors import MissingWeights, Txt2imgError, UnknownLayout
from txt2img.request.adapters import Embedding
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import Device
from txt2img.weights.adapters.file_layout import word_of
from txt2img.weights.adapters.textual_inversion import open_embedding
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.model import Model
from txt2img.weights.registry.hashes import sha256

CPU = Device(torch.device("cpu"), torch.float32)
ONE, THREE = torch.randn(32), torch.randn(3, 32)


def learn(model: Model, prompt: str, negative: str = "", **files: Path) -> Request:
    """Apply a prompt's embeddings."""
    model.adapters.paths = AdapterPaths(
        embeddings={f"<{word}>": path for word, path in files.items()}
    )
    request = resolve_adapters(model, Request(prompt, negative))
    apply_adapters(model, request)
    return request


def of_diffusers(prompt: str, files: list[tuple[str, Path]]) -> Tensor:
    """diffusers' condition of a prompt with embeddings from files."""
    whole = tiny.sd1()
    pipe = StableDiffusionPipeline(
        vae=whole.vae,
        text_encoder=CLIPTextModel.from_pretrained(whole.folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(whole.folder / "tokenizer"),
        unet=whole.unet,
        scheduler=DDIMScheduler.from_config(whole.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for word, path in files:
        pipe.load_textual_inversion(path.parent, weight_name=path.name, token=word)
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def test_conditions_equal_diffusers(model: Model, tmp_path: Path) -> None:
    one = write(tmp_path / "one.safetensors", {"<one>": ONE})
    three = write(tmp_path / "three.safetensors", {"emb_params": THREE})
    prompt = "a <one> photo of <three>, on grass"
    learn(model, prompt, one=one, three=three)
    with torch.no_grad():
        got = model.text.encode([prompt]).tokens
    wanted = of_diffusers(prompt, [("<one>", one), ("<three>", three)])
    assert float((got - wanted).abs().max()) < 1e-5
    apply_adapters(model, Request(prompt))
    with torch.no_grad():
        assert float((model.text.encode([prompt]).tokens - wanted).abs().max()) > 1e-2


def test_a_request_names_the_embeddings_in_its_prompts(model: Model, tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", {"emb_params": THREE})
    used = (Embedding("<x>", sha256(file)[:12]),)
    assert learn(model, "a <X>", x=file).embeddings == used
    assert learn(model, "a", "no <x>!", x=file).embeddings == used
    assert learn(model, "a", x=file).embeddings == ()


def test_an_embedding_is_never_cut_in_two(model: Model, tmp_path: Path) -> None:
    learn(model, "<x>", x=write(tmp_path / "x.safetensors", {"emb_params": THREE}))
    tokenizer = model.text.tokenizer
    first, second = tokenizer.chunks("cat " * 73 + "<x> dog")
    learnt = [49408, 49409, 49410]
    assert first[74:] == [tokenizer.eos_id] * 3 and second[1:4] == learnt
    [alone] = tokenizer.chunks("cat " * 72 + "<x>")
    assert alone[73:76] == learnt
    assert tokenizer.chunks("a<x> <x>")[0][1:8] == [*tokenizer.tokens("a"), *learnt, *learnt]


def test_tokens_are_found_as_words() -> None:
    tokenizer = tiny.sd1().tokenizer
    tokenizer.embedding_ids |= {"red": [5], "red-ish": [6]}
    try:
        assert tokenizer.units("Red tired reds red-ish")[0] == [5]
        assert tokenizer.units("Red tired reds red-ish")[-1] == [6]
        assert [5] not in tokenizer.units("tired reds")
    finally:
        tokenizer.embedding_ids.clear()


def test_removing_leaves_no_trace(model: Model, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in model.text.state_dict().items()}
    chunks = model.text.tokenizer.chunks("a <x>")
    learn(model, "a <x>", x=write(tmp_path / "x.safetensors", {"emb_params": THREE}))
    assert model.text.tokenizer.chunks("a <x>") != chunks
    apply_adapters(model, Request("a <x>"))
    assert model.text.tokenizer.chunks("a <x>") == chunks
    after = model.text.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert before.keys() == after.keys()


def test_sdxls_files_have_a_tensor_for_each_encoder(tmp_path: Path) -> None:
    encoders = tuple(SimpleNamespace(config=SimpleNamespace(width=w, length=77)) for w in (32, 64))
    model = cast(Model, SimpleNamespace(text=SimpleNamespace(encoders=encoders)))
    parts = {"clip_g": torch.randn(2, 64), "clip_l": torch.randn(2, 32)}
    learnt = open_embedding(write(tmp_path / "x.safetensors", parts), model.text.encoders)
    first, second = learnt.read()
    assert torch.equal(first, parts["clip_l"]) and torch.equal(second, parts["clip_g"])
    with pytest.raises(UnknownLayout, match="clip_l and clip_g is needed"):
        open_embedding(write(tmp_path / "y.safetensors", {"emb_params": ONE}), model.text.encoders)


def test_a_files_token_is_its_tensors_name_or_its_own(tmp_path: Path) -> None:
    assert word_of(write(tmp_path / "a.safetensors", {"<cat>": ONE})) == "<cat>"
    assert word_of(write(tmp_path / "b.safetensors", {"emb_params": ONE})) == "b"
    assert word_of(write(tmp_path / "c.safetensors", {"clip_l": ONE, "clip_g": THREE})) == "c"


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        ({"emb_params": torch.ones(2, 768)}, MissingWeights, "takes vectors of width 32"),
        ({"emb_params": torch.ones(76, 32)}, MissingWeights, "has 76 vectors; .* room for 75"),
        ({"emb_params": torch.ones(0, 32)}, MissingWeights, "has 0 vectors"),
        ({"emb_params": torch.ones(2, 2, 32)}, MissingWeights, "has the shape"),
        ({"emb_params": torch.full((2, 32), float("nan"))}, MissingWeights, "not finite"),
        ({"a": ONE, "b": ONE}, UnknownLayout, "no embedding for this model"),
        ({}, UnknownLayout, "it contains nothing"),
    ],
)
def test_other_files_are_refused_in_one_line(
    state: dict[str, Tensor],
    kind: type[Txt2imgError],
    message: str,
    model: Model,
    tmp_path: Path,
) -> None:
    before = model.text.tokenizer.chunks("<x>")
    file = write(tmp_path / "x.safetensors", state)
    with pytest.raises(kind, match=message) as caught:
        learn(model, "<x>", x=file)
    assert "\n" not in str(caught.value)
    assert model.text.tokenizer.chunks("<x>") == before


def test_pickled_files_are_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(UnknownLayout, match="pickled"):
        learn(model, "<x>", x=tmp_path / "x.pt")


@pytest.mark.parametrize("ending", ["string_to_param.*", "emb_params", "clip_l"])
def test_words_in_a_loras_file_are_embeddings(model: Model, tmp_path: Path, ending: str) -> None:
    tensors = kohya(pairs(model.network, r"attn1\.to_q$")) | {f"bundle_emb.<w>.{ending}": THREE}
    lora = write(tmp_path / "style.safetensors", tensors)
    alone = write(tmp_path / "w.safetensors", {"emb_params": THREE})
    prompt = "a <w> cat"
    model.adapters.paths = AdapterPaths(loras={"style": lora})
    request = resolve_adapters(model, Request(f"{prompt} <lora:style:0.5>"))
    assert [word.token for word in request.embeddings] == ["<w>"]
    apply_adapters(model, request)
    with torch.no_grad():
        got = model.text.encode([prompt]).tokens
    assert not model.adapters.notes or "no place" not in model.adapters.notes[0]
    # A record of it is drawn again, and the word goes with the LoRA.
    assert resolve_adapters(model, request) == request
    assert not resolve_adapters(model, Request(prompt)).embeddings
    assert not resolve_adapters(model, Request("a cat <lora:style:0.5>")).embeddings
    learn(model, prompt, w=alone)
    with torch.no_grad():
        assert torch.equal(got, model.text.encode([prompt]).tokens)


def test_bundled_words_of_other_encoders_are_left_out(model: Model, tmp_path: Path) -> None:
    tensors = kohya(pairs(model.network, r"attn1\.to_q$"))
    tensors |= {f"bundle_emb.w.{part}": torch.randn(2, 64) for part in ("clip_l", "clip_g")}
    lora = write(tmp_path / "style.safetensors", tensors)
    model.adapters.paths = AdapterPaths(loras={"style": lora})
    assert not resolve_adapters(model, Request("a w <lora:style>")).embeddings
    assert 'its word "w" is for other text encoders' in " ".join(model.adapters.notes)
