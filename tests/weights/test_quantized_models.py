"""Models in ComfyUI's 8 bits compute what their dequantised weights do, and stay narrow."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.conftest import Command
from tests.support import adapters, comfy_files, tiny
from tests.weights.adapters.test_lora import put_on
from tests.weights.test_gguf_models import (
    CPU,
    SIZE,
    a_pass,
    assert_close,
    loaded,
    tiny_files,
    weights_in_memory,
)
from txt2img.request.resolve import ComponentOverrides
from txt2img.weights.apply_adapters import remove_adapters
from txt2img.weights.checkpoint import summary
from txt2img.weights.load import load

FAMILIES = ("flux_dev", "sd3", "z_image", "flux2_klein")


def written(tensors: Mapping[str, Tensor], folder: Path, kind: str) -> tuple[Path, Path]:
    """A network quantised, and as it is once dequantised."""
    paths = folder / "narrow.safetensors", folder / "wide.safetensors"
    for path, content in zip(paths, comfy_files.quantized(tensors, kind), strict=True):
        save_file({name: value.contiguous() for name, value in content.items()}, path)
    return paths


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["convrot", "fp8"])
def test_a_transformer_computes_what_its_dequantised_weights_do(
    tmp_path: Path, name: str, kind: str
) -> None:
    files = tiny_files(name)
    narrow, wide = written(load_file(files.network), tmp_path, kind)
    quantized, plain = loaded(files, narrow), loaded(files, wide)
    assert quantized.family == plain.family
    assert_close(a_pass(quantized), a_pass(plain))
    memory = weights_in_memory(quantized.network)
    assert memory <= 1.15 * narrow.stat().st_size and memory < 0.6 * weights_in_memory(
        plain.network
    )


@pytest.mark.parametrize("kind", ["int8", "fp8 rows", "scaled_fp8"])
def test_other_scales_do_the_same(tmp_path: Path, kind: str) -> None:
    files = tiny_files("flux_dev")
    narrow, wide = written(load_file(files.network), tmp_path, kind)
    assert_close(a_pass(loaded(files, narrow)), a_pass(loaded(files, wide)))


@pytest.mark.parametrize("kind", ["convrot", "fp8"])
def test_a_unet_computes_what_its_dequantised_weights_do(tmp_path: Path, kind: str) -> None:
    model = tiny.sd1()
    prefix = "model.diffusion_model."
    whole = load_file(model.file)
    unet = {n.removeprefix(prefix): v for n, v in whole.items() if n.startswith(prefix)}
    narrow, wide = (
        load(str(model.file), CPU, overrides=ComponentOverrides(str(path)))
        for path in written(unet, tmp_path, kind)
    )
    assert narrow.checkpoint is not None and "unet:" in narrow.checkpoint.quantized
    assert_close(a_pass(narrow), a_pass(wide))


@pytest.mark.parametrize("kind", ["convrot", "scaled_fp8"])
def test_text_encoders_stay_narrow_too(tmp_path: Path, kind: str) -> None:
    """T5 in FLUX.1 and Qwen3 in Z-Image, whose prompts become the same tokens."""
    for name in ("flux_dev", "z_image"):
        files, group = tiny_files(name), 4
        parts = comfy_files.quantized(load_file(files.texts[-1]), kind, group)
        encoders = []
        for index, content in enumerate(parts):
            path = tmp_path / f"{name}{index}.safetensors"
            save_file({n: value.contiguous() for n, value in content.items()}, path)
            texts = (*map(str, files.texts[:-1]), str(path))
            overrides = ComponentOverrides(None, texts)
            model = load(str(files.network), CPU, vae_path=str(files.vae), overrides=overrides)
            encoders.append(model.text)
        with torch.inference_mode():
            ours, expected = (one.encode(["a red (apple:1.2)"]).tokens for one in encoders)
        assert_close(ours, expected)
        narrow, wide = (weights_in_memory(one.encoders[-1]) for one in encoders)
        assert narrow < wide


@pytest.mark.parametrize("kind", ["convrot", "fp8", "float8"])
def test_a_lora_changes_what_is_unpacked(tmp_path: Path, kind: str) -> None:
    """Of plain 8-bit floats as well, which a transformer keeps."""
    files = tiny_files("flux_dev")
    if kind == "float8":
        tensors = load_file(files.network)
        eight = {n: v.to(torch.float8_e4m3fn) if v.ndim > 1 else v for n, v in tensors.items()}
        narrow, wide = tmp_path / "narrow.safetensors", tmp_path / "wide.safetensors"
        save_file(eight, narrow)
        save_file({name: value.float() for name, value in eight.items()}, wide)
    else:
        narrow, wide = written(load_file(files.network), tmp_path, kind)
    quantized, plain = loaded(files, narrow), loaded(files, wide)
    assert weights_in_memory(quantized.network) < 0.4 * weights_in_memory(plain.network)
    before = a_pass(quantized)
    torch.manual_seed(4)
    layers = adapters.pairs(plain.network, r"to_[qk]$")
    lora = adapters.write(tmp_path / "l.safetensors", adapters.peft(layers, "transformer."))
    for model in (quantized, plain):
        put_on(model, lora)
    assert quantized.adapters.packed and not plain.adapters.packed
    assert (a_pass(plain) - before).abs().max() > 0.1 * before.std()
    assert_close(a_pass(quantized), a_pass(plain))
    remove_adapters(quantized)
    assert torch.equal(a_pass(quantized), before)


def test_a_picture_is_drawn_and_bits_are_told(command: Command) -> None:
    files = tiny_files("flux_dev")
    narrow, _ = written(load_file(files.network), Path.cwd(), "convrot")
    texts = [part for path in files.texts for part in ("--text-encoder", str(path))]
    rest = (*texts, "--vae", str(files.vae), *SIZE)
    assert command("a", "--model", str(narrow), *rest, "-o", "x.png").code == 0
    words = summary(str(narrow)).quantized
    assert words.startswith("transformer: I8 (ConvRot) and F32, 8.") and "bits a weight" in words
    assert f"weights: {words}" in command("a", "--model", str(narrow), *rest, "--dry-run").err
    assert words in command("info", str(narrow)).out
    refused = command("a", "--model", str(narrow), *rest, "--quantize", "int8", "-o", "y.png")
    assert refused.code == 2 and "is quantised already" in refused.err


@pytest.mark.parametrize("name", FAMILIES)
def test_every_transformer_can_be_quantised_and_kept_as_stored(name: str) -> None:
    """By --quantize with the error of 8 bits, by --low-memory with none."""
    pytest.importorskip("torchao")
    folder = str(tiny_files(name).folder)
    exact = a_pass(load(folder, CPU))
    for kind, most in (("int8", 0.03), ("fp8", 0.1)):
        out = a_pass(load(folder, replace(CPU, quantize=kind)))
        assert 0 < (out - exact).norm() / exact.norm() < most
    low = load(folder, replace(CPU, low=True))
    assert any(value.is_meta for value in low.network.parameters())
    with low.memory.placement.using("network", low.network):
        assert torch.equal(a_pass(low), exact)


def test_a_dry_run_says_what_quantizing_needs_and_saves(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_files("flux_dev")
    whole = ("a", "--model", str(files.single), *SIZE, "--dry-run")
    if find_spec("torchao") is not None:
        told = command(*whole, "--quantize", "int8")
        assert told.code == 0 and "transformer: its matrices become int8" in told.err
    monkeypatch.setitem(sys.modules, "torchao", None)
    refused = command(*whole, "--quantize", "int8")
    assert refused.code == 2 and "pip install torchao" in refused.err
