"""Networks whose blocks come and go compute the same bits, in the memory of two blocks."""

import gc
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support import adapters, tiny
from tests.weights.adapters.test_lora import put_on
from tests.weights.test_gguf_models import CPU, a_pass, loaded, packed, tiny_files
from txt2img.errors import BadRequest
from txt2img.models.unet import TransformerBlock
from txt2img.pipeline.generate import generate, stream
from txt2img.request import Request
from txt2img.request.adapters import Embedding, Lora
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import Device
from txt2img.system.device.offload import Placement, blocks_of
from txt2img.system.device.streaming import sizes_of
from txt2img.system.stream_plan import plan_stream
from txt2img.weights.apply_adapters import remove_adapters
from txt2img.weights.load import ComponentReader, load
from txt2img.weights.model import Model
from txt2img.weights.model_cache import ModelCache, weights_key

STREAMED = replace(CPU, offload="sequential")
SMALL = Request(prompt="a red cat", seed=1, steps=2, width=64, height=64)


def passed(model: Model) -> Tensor:
    with model.memory.placement.using("network", model.network):
        return a_pass(model)


def scaled_float8(tensors: Mapping[str, Tensor], path: Path) -> Path:
    """A network's matrices in float8 with a scale each, as ComfyUI writes them."""
    rows: dict[str, Tensor] = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, value in tensors.items():
        if value.ndim < 2 or not name.endswith(".weight"):
            rows[name] = value
            continue
        scale = value.abs().max() / 448
        rows[name] = (value / scale).to(torch.float8_e4m3fn)
        rows[name.replace(".weight", ".scale_weight")] = scale.reshape(1)
    save_file(rows, path)
    return path


@pytest.mark.parametrize("name", ["flux_dev", "sd3", "z_image", "flux2_klein"])
def test_every_transformer_computes_the_same_bits_by_block_and_by_layer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_files(name)
    expected = a_pass(loaded(files, files.network))
    model = loaded(files, files.network, STREAMED)
    assert all(value.is_meta for value in model.network.state_dict().values())
    assert torch.equal(passed(model), expected)
    assert all(value.is_meta for value in model.network.state_dict().values())
    sizes = sizes_of(model.network)
    lists = blocks_of(model.network)
    least = plan_stream(sizes, lists, 0).least
    for room in (least, least * 9 // 8):
        plan = plan_stream(sizes, lists, room)
        assert plan.streamed and plan.most <= room
        monkeypatch.setattr(Placement, "room", lambda self, needed=0, room=room: room)
        assert torch.equal(passed(model), expected)
        assert torch.equal(passed(model), expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "fp8", "bf16"])
def test_narrow_files_stay_narrow_and_compute_the_same_bits(tmp_path: Path, kind: str) -> None:
    files = tiny_files("z_image")
    tensors = load_file(files.network)
    if kind == "fp8":
        network = scaled_float8(tensors, tmp_path / "x.safetensors")
    elif kind == "bf16":
        network = tmp_path / "x.safetensors"
        save_file({n: value.bfloat16() for n, value in tensors.items()}, network)
    else:
        network, _ = packed(tensors, tmp_path, kind)
    expected, model = a_pass(loaded(files, network)), loaded(files, network, STREAMED)
    assert torch.equal(passed(model), expected)
    assert torch.equal(passed(model), expected)


def test_no_more_than_two_blocks_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = tiny_files("z_image")
    model = loaded(files, files.network, STREAMED)
    seen: list[weakref.ref[Tensor]] = []
    most: list[int] = []
    blocks = [*model.network.noise_refiner, *model.network.context_refiner, *model.network.layers]
    largest = max(sum(p.nbytes for p in block.parameters()) for block in blocks)
    fill = ComponentReader.fill

    def watched(self: ComponentReader, views: Mapping[str, Tensor]) -> None:
        fill(self, views)
        for view in views.values():
            seen.append(weakref.ref(view.untyped_storage()))
        alive = {one.data_ptr(): one.nbytes() for ref in seen if (one := ref()) is not None}
        most.append(sum(alive.values()))

    rest = sum(p.nbytes for p in model.network.parameters()) - sum(
        p.nbytes for block in blocks for p in block.parameters()
    )
    monkeypatch.setattr(ComponentReader, "fill", watched)
    passed(model)
    assert len(most) > len(blocks)
    assert largest < max(most) <= rest + 2 * (largest + 64 * 20)
    gc.collect()
    assert not [ref for ref in seen if ref() is not None]


def test_a_limit_too_small_for_a_layer_names_the_least_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = tiny_files("flux_dev")
    device = replace(STREAMED, max_memory=10**9)
    model = loaded(files, files.network, device)
    monkeypatch.setattr(Placement, "room", lambda self, needed=0: 0)
    with (
        pytest.raises(
            BadRequest, match=r"--max-memory 1\.0 GB is too little for the network.*1\.1 GB"
        ),
        model.memory.placement.using("network", model.network),
    ):
        raise AssertionError
    assert all(value.is_meta for value in model.network.state_dict().values())


@pytest.mark.parametrize("name", ["flux_dev", "flux2_klein"])
def test_text_encoders_that_come_by_layers_and_rows_encode_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_files(name)
    plain, model = loaded(files, files.network), loaded(files, files.network, STREAMED)
    prompts = ["a red cat on (a mat:1.3)"]
    with torch.inference_mode():
        expected = plain.text.encode(prompts)
        sizes = sum(v.nbytes for v in model.text.state_dict().values())
        monkeypatch.setattr(Placement, "room", lambda self, needed=0: sizes // 2)
        with model.memory.placement.using("text", model.text):
            held = [v for v in model.text.state_dict().values() if not v.is_meta]
            assert sum(v.nbytes for v in held) < sizes // 2
            found = model.text.encode(prompts)
    assert torch.equal(found.tokens, expected.tokens)
    assert all(value.is_meta for value in model.text.state_dict().values())


@pytest.mark.parametrize("kind", ["plain", "Q8_0"])
def test_a_lora_is_merged_when_a_block_comes(tmp_path: Path, kind: str) -> None:
    files = tiny_files("z_image")
    network = files.network
    if kind != "plain":
        network, _ = packed(load_file(files.network), tmp_path, kind)
    wide = loaded(files, files.network)
    plain, model = loaded(files, network), loaded(files, network, STREAMED)
    before = a_pass(plain)
    torch.manual_seed(4)
    lora = adapters.write(
        tmp_path / "l.safetensors",
        adapters.peft(adapters.pairs(wide.network, r"to_[qk]$"), "transformer."),
    )
    for one in (plain, model):
        put_on(one, lora)
    expected = a_pass(plain)
    assert not torch.equal(expected, before)
    assert torch.equal(passed(model), expected)
    with model.memory.placement.materialised(model.network):
        assert torch.equal(a_pass(model), expected)
    remove_adapters(model)
    assert torch.equal(passed(model), before)


def plain_sd1(device: Device) -> Model:
    return load(str(tiny.sd1().file), replace(device, optimize=False))


@pytest.mark.parametrize("change", [{}, {"reuse": 2, "steps": 4}, {"token_merging": 0.5}])
def test_a_unet_draws_the_same_picture(change: dict[str, float]) -> None:
    """With DeepCache, not all blocks come in every step."""
    request = replace(SMALL, **change)
    [expected] = generate(request, plain_sd1(CPU))
    [found] = generate(request, plain_sd1(STREAMED))
    assert found.tobytes() == expected.tobytes()


def test_a_model_is_usable_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain_sd1(STREAMED)
    before, calls = weights_key(model), [0]
    forward = TransformerBlock.forward

    def interrupted(self: TransformerBlock, *inputs: object) -> Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return forward(self, *inputs)

    monkeypatch.setattr(TransformerBlock, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, model)
    gc.collect()
    assert weights_key(model) == before
    assert all(value.is_meta for value in model.network.state_dict().values())
    states = stream(SMALL, model)
    next(states)
    states.close()
    assert all(value.is_meta for value in model.network.state_dict().values())
    [found], [expected] = generate(SMALL, model), generate(SMALL, plain_sd1(CPU))
    assert found.tobytes() == expected.tobytes()


def test_a_worker_keeps_a_model_that_is_streamed() -> None:
    cache = ModelCache()
    cache.enabled = True
    path, device = str(tiny.sd1().file), replace(STREAMED, optimize=False)
    [first] = generate(SMALL, cache.load(path, device))
    [second] = generate(SMALL, cache.load(path, device))
    assert cache.hit and first.tobytes() == second.tobytes()
    cache.load(path, replace(device, max_memory=10**9))
    assert not cache.hit


@pytest.mark.parametrize("mode", ["model", "sequential"])
def test_adapters_change_text_encoders_that_wait_in_their_file(tmp_path: Path, mode: str) -> None:
    """A LoRA is merged when they are read; an embedding's rows are appended to their own."""
    plain, model = plain_sd1(CPU), plain_sd1(replace(CPU, offload=mode))
    torch.manual_seed(4)
    made = adapters.pairs(plain.text.model, r"[qkv]_proj$")
    lora = adapters.write(tmp_path / "l.safetensors", adapters.kohya(made, "lora_te_text_model_"))
    width = plain.text.config.width
    word = adapters.write(tmp_path / "w.safetensors", {"emb_params": torch.randn(2, width)})
    pictures = []
    for one in (plain, model):
        one.adapters.paths = AdapterPaths(loras={"l": lora}, embeddings={"w": word})
        request = replace(SMALL, prompt="a w cat", loras=(Lora("l"),), embeddings=(Embedding("w"),))
        pictures.append(generate(request, one)[0].tobytes())
    assert pictures[0] == pictures[1]
    assert pictures[0] != generate(replace(SMALL, prompt="a cat"), plain)[0].tobytes()
    remove_adapters(model)
    assert generate(SMALL, model)[0].tobytes() == generate(SMALL, plain_sd1(CPU))[0].tobytes()
