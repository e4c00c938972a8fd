"""Models whose network is a GGUF file compute what its dequantised weights do."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.conftest import Command
from tests.support import adapters, gguf_files, tiny, tiny_transformers
from tests.support.tiny_transformers import TinyTransformer
from tests.weights.adapters.test_lora import put_on
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadRequest
from txt2img.request.resolve import ComponentOverrides
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import remove_adapters
from txt2img.weights.checkpoint import open_checkpoint, summary
from txt2img.weights.formats import safetensors_file
from txt2img.weights.load import load
from txt2img.weights.model import Model

CPU = Device(torch.device("cpu"), torch.float32)
FAMILIES = ("flux_dev", "sd3", "z_image", "flux2_klein")
SIZE = ("--width", "64", "--height", "64", "--steps", "1", "--seed", "1")
ONE_ROW = ("pos_embed", "cap_pad_token", "x_pad_token")


@cache
def tiny_files(name: str) -> TinyTransformer:
    files: TinyTransformer = getattr(tiny_transformers, name)()
    return files


def packed(tensors: Mapping[str, Tensor], folder: Path, kind: str) -> tuple[Path, Path]:
    """A network's tensors as GGUF, and dequantised as safetensors."""
    kinds = gguf_files.usual_kinds(tensors, kind)
    read = gguf_files.write(folder / f"tiny-{kind}.gguf", tensors, kinds)
    save_file(
        {name: value.contiguous() for name, value in read.items()}, folder / "wide.safetensors"
    )
    return folder / f"tiny-{kind}.gguf", folder / "wide.safetensors"


def loaded(files: TinyTransformer, network: Path, device: Device = CPU) -> Model:
    texts = tuple(str(path) for path in files.texts)
    overrides = ComponentOverrides(None, texts)
    return load(str(network), device, vae_path=str(files.vae), overrides=overrides)


@torch.inference_mode()
def a_pass(model: Model) -> Tensor:
    """The network's output for random inputs."""
    config = model.family.network
    generator = torch.Generator().manual_seed(0)
    cond = Cond(
        torch.randn(1, 7, config.cross_dim, generator=generator),
        torch.randn(1, config.pooled, generator=generator) if config.pooled else None,
        guidance=torch.tensor([3.5]) if config.embeds_guidance else None,
    )
    x = torch.randn(1, config.in_channels, 8, 8, generator=generator)
    dtype = next(model.network.parameters()).dtype
    out: Tensor = model.network(x.to(dtype), torch.tensor([500.0]), cond.to(dtype))
    return out


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.01
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["Q8_0", "Q5_K"])
def test_a_transformer_computes_what_its_dequantised_weights_do(
    tmp_path: Path, name: str, kind: str
) -> None:
    files = tiny_files(name)
    narrow, wide = packed(load_file(files.network), tmp_path, kind)
    quantized, plain = loaded(files, narrow), loaded(files, wide)
    assert quantized.family == plain.family and quantized.name == f"tiny-{kind}"
    assert kind in {ref.dtype for ref in safetensors_file.header(narrow).tensors.values()}
    assert_close(a_pass(quantized), a_pass(plain))


def test_axes_of_size_one_that_ggml_drops_are_put_back(tmp_path: Path) -> None:
    """Tools that are built on ggml write no axes of size 1 that come first."""
    for name in ("sd3", "z_image"):
        files = tiny_files(name)
        tensors = load_file(files.network)
        flat = {n: value[0] if n in ONE_ROW else value for n, value in tensors.items()}
        assert any(n in ONE_ROW for n in tensors)
        narrow, _ = packed(flat, tmp_path, "F16")
        with_axes = open_checkpoint(str(narrow)).components["transformer"].tensors
        whole = open_checkpoint(str(files.network)).components["transformer"].tensors
        assert {n: r.shape for n, r in with_axes.items()} == {n: r.shape for n, r in whole.items()}


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K"])
def test_a_unet_computes_what_its_dequantised_weights_do(tmp_path: Path, kind: str) -> None:
    """Its filters are in rows of blocks that are no rows of theirs."""
    model = tiny.sd1()
    prefix = "model.diffusion_model."
    tensors = {
        name.removeprefix(prefix): value
        for name, value in load_file(model.file).items()
        if name.startswith(prefix)
    }
    both = [
        load(str(model.file), CPU, overrides=ComponentOverrides(str(path)))
        for path in packed(tensors, tmp_path, kind)
    ]
    assert both[0].name == f"tiny-{kind}"
    assert_close(a_pass(both[0]), a_pass(both[1]))


def test_a_picture_is_drawn_and_bits_are_told(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_files("flux_dev")
    narrow, wide = packed(load_file(files.network), Path.cwd(), "Q8_0")
    texts = [part for path in files.texts for part in ("--text-encoder", str(path))]
    rest = (*texts, "--vae", str(files.vae), *SIZE)
    assert command("a", "--model", str(narrow), *rest, "-o", "x.png").code == 0
    told = command("a", "--model", str(narrow), *rest, "--dry-run").err
    words = summary(str(narrow)).quantized
    assert words.startswith("transformer: Q8_0 and F32, 8.") and "bits a weight" in words
    assert f"weights: {words}" in told
    assert words in command("info", str(narrow)).out
    assert not summary(str(wide)).quantized
    monkeypatch.setenv("TXT2IMG_MODELS", str(Path.cwd()))
    for name in ("tiny-Q8_0.gguf", "tiny-Q8_0"):
        assert command("a", "--model", name, *rest, "--dry-run").code == 0
    assert "tiny-Q8_0.gguf" in command("models", "list").out


def weights_in_memory(network: nn.Module) -> int:
    return sum(value.nbytes for value in network.state_dict().values())


@pytest.mark.parametrize("name", ["flux_dev", "z_image"])
def test_weights_stay_packed_and_a_lora_changes_what_is_unpacked(tmp_path: Path, name: str) -> None:
    files = tiny_files(name)
    narrow, wide = packed(load_file(files.network), tmp_path, "Q8_0")
    quantized, plain = loaded(files, narrow), loaded(files, wide)
    assert weights_in_memory(quantized.network) <= 1.15 * narrow.stat().st_size
    assert weights_in_memory(plain.network) > 3 * narrow.stat().st_size
    before = a_pass(quantized)
    torch.manual_seed(4)
    lora = adapters.write(
        tmp_path / "l.safetensors",
        adapters.peft(adapters.pairs(plain.network, r"to_[qk]$"), "transformer."),
    )
    for model in (quantized, plain):
        put_on(model, lora)
    assert quantized.adapters.packed and not plain.adapters.packed
    assert (a_pass(plain) - before).abs().max() > 0.1 * before.std()
    assert_close(a_pass(quantized), a_pass(plain))
    remove_adapters(quantized)
    assert torch.equal(a_pass(quantized), before)


def test_a_packed_model_is_not_quantised_again(tmp_path: Path) -> None:
    files = tiny_files("flux_dev")
    narrow, _ = packed(load_file(files.network), tmp_path, "Q8_0")
    with pytest.raises(BadRequest, match="--quantize int8: this model is quantised already"):
        load(str(narrow), replace(CPU, quantize="int8"), vae_path=str(files.vae))


def test_bfloat16_computes_with_unpacked_weights_in_bfloat16(tmp_path: Path) -> None:
    files = tiny_files("flux_dev")
    narrow, wide = packed(load_file(files.network), tmp_path, "Q4_K")
    bf16 = replace(CPU, dtype=torch.bfloat16)
    outs = [a_pass(loaded(files, path, bf16)) for path in (narrow, wide)]
    assert outs[0].dtype == torch.bfloat16 and torch.equal(*outs)
