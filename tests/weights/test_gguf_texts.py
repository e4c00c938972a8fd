"""Text encoders as llama.cpp names them compute what transformers' files of them do."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import MODEL_ARCH
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, T5Config, T5ForConditionalGeneration

from tests.conftest import Command
from tests.support import gguf_files, tiny_text, tiny_xl
from tests.support.tiny_text import scattered, tensors_of
from tests.weights.test_gguf_models import SIZE, assert_close, packed, tiny_files
from tests.weights.test_text_loading import states
from txt2img.models.optimize.packed import packed_weights

ARCHS = {"t5": MODEL_ARCH.T5, "t5encoder": MODEL_ARCH.T5ENCODER, "qwen3": MODEL_ARCH.QWEN3}


def written(model: nn.Module, folder: Path, arch: str, kind: str) -> tuple[Path, Path]:
    """A text encoder by llama.cpp's names, and dequantised by transformers'."""
    theirs = gguf.get_tensor_name_map(ARCHS[arch], model.config.num_hidden_layers)
    tensors = tensors_of(model)
    kinds = {n: k for n, k in gguf_files.usual_kinds(tensors, kind).items() if "bias" not in n}
    names = {name: theirs.get_name(name, try_suffixes=(".weight", ".bias")) for name in tensors}
    assert all(names.values())
    given = {names[name]: value for name, value in tensors.items()}
    path, wide = folder / f"{arch}-{kind}.gguf", folder / f"{arch}-{kind}.safetensors"
    read = gguf_files.write(path, given, {names[n]: k for n, k in kinds.items()}, arch)
    back = {ours: read[name].contiguous() for ours, name in names.items()}
    save_file(back, wide)
    return path, wide


def whole_t5() -> T5ForConditionalGeneration:
    """A T5 with its decoder."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **sizes)
    return scattered(T5ForConditionalGeneration(config), 5)


def wide_qwen3() -> Qwen3ForCausalLM:
    """A Qwen3 whose rows are whole blocks, with more heads than keys."""
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return scattered(Qwen3ForCausalLM(config), 6)


@pytest.mark.parametrize(
    ("arch", "model", "kind"),
    [
        ("t5encoder", tiny_text.t5, "Q8_0"),
        ("t5", whole_t5, "Q4_0"),
        ("qwen3", wide_qwen3, "Q8_0"),
        ("qwen3", wide_qwen3, "F16"),
    ],
)
def test_states_are_those_of_the_dequantised_file(tmp_path: Path, arch, model, kind) -> None:
    """By names of the gguf package's own map from transformers'."""
    narrow, wide = written(model(), tmp_path, arch, kind)
    family = arch[:2] if arch.startswith("t5") else arch
    ours, network, _ = states(family, narrow, low=False)
    expected, _, _ = states(family, wide, low=False)
    assert_close(ours, expected)
    assert bool(packed_weights(network)) == (kind != "F16")


def test_a_t5_as_gguf_draws(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """By options, and in a set of config.toml."""
    files = tiny_files("flux_dev")
    narrow, _ = packed(load_file(files.network), Path.cwd(), "Q8_0")
    t5, _ = written(tiny_text.t5(), Path.cwd(), "t5encoder", "Q8_0")
    rest = ("--text-encoder", str(files.texts[0]), "--vae", str(files.vae), *SIZE)
    whole = ("a", "--model", str(narrow), "--text-encoder", str(t5), *rest)
    assert command(*whole, "-o", "x.png").code == 0
    texts = json.dumps([str(files.texts[0]), str(t5)])
    Path("config.toml").write_text(
        f'[models.set]\npath = "{narrow}"\ntext_encoders = {texts}\nvae = "{files.vae}"\n'
    )
    monkeypatch.setenv("TXT2IMG_CONFIG", "config.toml")
    assert command("a", "--model", "set", *SIZE, "-o", "y.png").code == 0
    assert np.array_equal(*(np.asarray(Image.open(name)) for name in ("x.png", "y.png")))
    assert "text_encoder_2: Q8_0" in command(*whole, "--dry-run").err
    told = command("info", str(t5)).out
    assert "text encoder" in told and "T5" in told and "Q8_0 and F32, 8." in told
    alone = command("a", "--model", str(t5), *SIZE)
    assert alone.code != 0 and "a text encoder alone: use it with --text-encoder" in alone.err


def test_sdxl_as_gguf_draws(command: Command) -> None:
    """A U-Net of its own as GGUF, in a model's own place."""
    model = tiny_xl.base()
    prefix = "model.diffusion_model."
    whole = load_file(model.file).items()
    unet = {name.removeprefix(prefix): v for name, v in whole if name.startswith(prefix)}
    narrow, wide = packed(unet, Path.cwd(), "Q8_0")
    pictures = []
    for path in (narrow, wide):
        out = str(path.with_suffix(".png"))
        done = command("a", "--model", str(model.file), "--unet", str(path), *SIZE, "-o", out)
        assert done.code == 0, done.err
        pictures.append(np.asarray(Image.open(out), int))
    assert pictures[1].std() > 1 and np.abs(pictures[0] - pictures[1]).max() <= 1
