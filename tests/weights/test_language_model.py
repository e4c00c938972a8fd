"""A language model of a folder rewrites prompts: loaded, asked, freed; broken ones are told."""

import gc
import json
import shutil
import weakref
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tokenizers import decoders

from tests.conftest import Command
from tests.support.tiny_text import TEMPLATE, qwen3, their_qwen_tokenizer
from txt2img.errors import BadFile, EnhanceFailed, ModelNotFound, Txt2imgError
from txt2img.images import image_file
from txt2img.weights import language_model
from txt2img.weights.language_model import LanguageModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Qwen3 with random weights, and its real tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "Tiny-Qwen3"
    qwen3(2).save_pretrained(folder)
    tokenizer = deepcopy(their_qwen_tokenizer())
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens: what is random never ends by itself."""
    monkeypatch.setattr(language_model, "TOKENS_MAX", 16)


def answer(folder: Path, seed: int = 1, temperature: float = 0.7) -> str:
    """The answer of a language model, in memory for that long."""
    model = LanguageModel(folder)
    model.load(CPU)
    try:
        return model.answer("be brief", "a cat", seed, temperature)
    finally:
        model.free()


def test_the_seed_decides_the_answer(qwen: Path) -> None:
    before = torch.random.get_rng_state()
    first = answer(qwen)
    assert first and answer(qwen) == first != answer(qwen, seed=2)
    assert answer(qwen, 1, 0.0) == answer(qwen, 2, 0.0)  # at temperature 0 nothing is drawn
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_chat_is_as_transformers_makes_it(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(qwen)
    model.load(CPU)
    assert model._loaded is not None
    network, tokenizer = model._loaded
    seen: list[torch.Tensor] = []

    def generate(ids: torch.Tensor, **settings: object) -> torch.Tensor:
        seen.append(ids)
        assert settings["max_new_tokens"] == 16 and settings["temperature"] == 0.7
        return torch.cat([ids, torch.tensor([tokenizer("a fine cat")["input_ids"]])], 1)

    monkeypatch.setattr(network, "generate", generate)
    assert model.answer("be brief", "a cat", 1, 0.7) == "a fine cat"
    said = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na cat<|im_end|>\n"
    thoughts = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert tokenizer.decode(seen[0][0]) == said + thoughts
    # A template that knows no system prompt has the instructions in the user's turn.
    tokenizer.chat_template = "{%- if messages[0].role == 'system' -%}{{ raise_exception('no') }}"
    tokenizer.chat_template += "{%- endif -%}{{ messages[0].content }}"
    assert model.answer("be brief", "a cat", 1, 0.7) == "a fine cat"
    assert tokenizer.decode(seen[1][0]) == "be brief\n\na cat"
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(EnhanceFailed, match="chat template"):
        model.answer("be brief", "a cat", 1, 0.7)
    tokenizer.chat_template = None  # it continues what it reads
    assert model.answer("be brief", "a cat", 1, 0.7) == "a cata fine cat"


def test_its_weights_leave_memory(qwen: Path) -> None:
    model = LanguageModel(qwen)
    model.load(CPU)
    assert model._loaded is not None
    weights = weakref.ref(next(model._loaded[0].parameters()))
    model.free()
    gc.collect()
    assert weights() is None


def test_a_picture_records_the_folders_name_and_hash(
    draw: Command, qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "answer", lambda self, *said: f"{said[1]}, a photo")
    done = draw("a cat", "--enhance", str(qwen), "--seed", "7", "-o", "x.png")
    assert done.code == 0, done.err
    request = image_file.read(Path("x.png")).request
    assert request is not None and request.enhancer is not None
    assert request.prompt == "a cat, a photo"
    assert request.enhancer.model == "Tiny-Qwen3"
    assert request.enhancer.hash == LanguageModel(qwen).hash and len(request.enhancer.hash) == 10
    assert str(qwen.parent).encode() not in Path("x.png").read_bytes()


def test_the_tiny_model_itself_rewrites(command: Command, qwen: Path) -> None:
    line = ("enhance", "a cat", "--enhance", str(qwen), "--device", "cpu", "-q")
    first, again = command(*line), command(*line)
    assert first.code == 0 and first.out.count("\n") == 1 and len(first.out) > 10
    assert again.out == first.out
    other = command(*line, "--enhance-seed", "3")
    assert other.code == 0 and other.out != first.out


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        ("remove config.json", BadFile, "config.json"),
        ("remove model.safetensors", Txt2imgError, "missing"),
        ("remove tokenizer.json", BadFile, "cannot be loaded"),
        ("cut model.safetensors", BadFile, "model.safetensors"),
        ("encoder", BadFile, "not a language model that writes texts"),
        ("code", BadFile, "cannot be loaded"),
        ("layers", BadFile, "lacks 11 tensors"),
        ("remove", ModelNotFound, "no folder"),
    ],
)
def test_a_broken_folder_is_told_in_a_line(
    qwen: Path, tmp_path: Path, damage: str, kind: type[Txt2imgError], message: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(qwen, folder)
    what, _, name = damage.partition(" ")
    config = json.loads((folder / "config.json").read_text())
    if what == "remove":
        (folder / name).unlink() if name else shutil.rmtree(folder)
    elif what == "cut":
        (folder / name).write_bytes((folder / name).read_bytes()[:5000])
    elif what == "encoder":
        config["architectures"] = ["T5EncoderModel"]
    elif what == "code":
        config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
        (folder / "evil.py").write_text("raise SystemExit('code of a model was run')")
    elif what == "layers":
        config["num_hidden_layers"] = 3
        config.pop("layer_types", None)
    if what in ("encoder", "code", "layers"):
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=message) as error:
        answer(folder)
    assert "\n" not in str(error.value)
