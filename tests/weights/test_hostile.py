"""Damaged files of every kind are refused in one line, soon, and in little memory; or they work."""

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import tiny
from tests.support.adapters import write
from tests.support.mutations import mutant
from tests.support.peak import peak
from txt2img.errors import BadFile, BadRequest, ModelNotFound, Txt2imgError
from txt2img.pipeline.generate import generate
from txt2img.request.adapters import Lora
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths, ComponentOverrides
from txt2img.system.device.device import Device
from txt2img.system.text import escape
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.file_kind import kind_of
from txt2img.weights.load import load
from txt2img.weights.model import Model

SEEDS = int(os.environ.get("TXT2IMG_FUZZ", "8"))  # of each kind; more find more
CPU = Device(torch.device("cpu"), torch.float32)
SECONDS, MEGABYTES = 5.0, 256
CHARACTERS = 1000
SMALL = Request("a cat", width=64, height=64, steps=1, seed=1)


@cache
def base() -> Model:
    return load(str(tiny.own()), CPU)


def as_model(path: Path) -> None:
    generate(SMALL, load(str(path), CPU))


def as_vae(path: Path) -> None:
    load(str(tiny.own()), CPU, vae_path=str(path))


def as_unet(path: Path) -> None:
    load(str(tiny.own()), CPU, overrides=ComponentOverrides(unet=str(path)))


def as_text(path: Path) -> None:
    load(str(tiny.own()), CPU, overrides=ComponentOverrides(texts=(str(path),)))


def as_lora(path: Path) -> None:
    model = base()
    model.adapters.lora_files.clear()
    model.adapters.paths = AdapterPaths({"x": path})
    try:
        apply_adapters(model, resolve_adapters(model, Request("a", loras=(Lora("x"),))))
    finally:
        apply_adapters(model, Request(""))


def as_embedding(path: Path) -> None:
    model = base()
    model.adapters.embedding_files.clear()
    model.adapters.paths = AdapterPaths(embeddings={"red": path})
    try:
        apply_adapters(model, resolve_adapters(model, Request("a red")))
        model.text.encode(["a red"])
    finally:
        apply_adapters(model, Request(""))


Use = Callable[[Path], None]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small valid file of each kind."""
    root = tmp_path_factory.mktemp("samples")
    torch.manual_seed(3)
    weights = {
        part: tiny.own() / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae")
    }
    for part, path in weights.items():
        shutil.copy(path, root / f"{part}.safetensors")
    shutil.copy(tiny.own() / "text_encoder" / "model.safetensors", root / "text.safetensors")
    flat = dict(load_file(weights["unet"]))
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    side = flat[f"{layer}.weight"].shape[0]
    name = f"lora_unet_{layer.replace('.', '_')}"
    write(
        root / "lora.safetensors",
        {
            f"{name}.lora_down.weight": torch.randn(2, side),
            f"{name}.lora_up.weight": torch.randn(side, 2),
            f"{name}.alpha": torch.tensor(2.0),
        },
    )
    kinds = {
        "oft": {"oft_blocks": torch.randn(4, side // 4, side // 4), "alpha": torch.tensor(0.0)},
        "lokr": {"lokr_w1": torch.randn(4, 4), "lokr_w2": torch.randn(side // 4, side // 4)},
        "loha": {
            f"hada_w{n}_{ab}": torch.randn(*((side, 2) if ab == "a" else (2, side)))
            for n in (1, 2)
            for ab in "ab"
        },
        "ia3": {"weight": torch.randn(side), "on_input": torch.tensor(False)},
    }
    for kind, parts in kinds.items():
        write(root / f"{kind}.safetensors", {f"{name}.{role}": v for role, v in parts.items()})
    write(root / "embedding.safetensors", {"emb_params": torch.randn(2, 32)})
    return root


FILES: list[tuple[str, Use]] = [
    ("vae", as_vae),
    ("unet", as_unet),
    ("text", as_text),
    ("lora", as_lora),
    ("oft", as_lora),
    ("lokr", as_lora),
    ("loha", as_lora),
    ("ia3", as_lora),
    ("embedding", as_embedding),
]


def survive(use: Use, path: Path, what: str) -> bool:
    """Whether a damaged file is refused; checks the message, time and memory."""
    before, start = peak(), time.process_time()
    refused = False
    try:
        use(path)
    except (BadFile, BadRequest, ModelNotFound) as error:
        message = str(error)
        assert message and "\n" not in message and escape(message) == message, what
        assert len(message) < CHARACTERS, what
        refused = True
    except Txt2imgError as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert time.process_time() - start < SECONDS, what
    assert peak() - before < MEGABYTES, what
    return refused


@pytest.mark.parametrize(("kind", "use"), FILES)
def test_a_damaged_file_is_refused_or_works(
    kind: str, use: Use, samples: Path, tmp_path: Path
) -> None:
    good = samples / f"{kind}.safetensors"
    assert not survive(use, good, kind)
    refused = 0
    for seed in range(SEEDS):
        path = tmp_path / f"{kind}.safetensors"
        path.write_bytes(mutant(good, seed))
        refused += survive(use, path, f"{kind}, seed {seed}")
        kind_of(path)
    assert refused > SEEDS / 2
    assert [one.name for one in tmp_path.iterdir()] == [f"{kind}.safetensors"]


PARTS = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
    "tokenizer/vocab.json",
    "tokenizer/special_tokens_map.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_part_of_a_folder_is_refused_or_works(part: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.own(), folder)
    good = tiny.own() / part
    for seed in range(SEEDS):
        (folder / part).write_bytes(mutant(good, seed))
        survive(as_model, folder, f"{part}, seed {seed}")


def test_a_damaged_index_of_shards_is_refused_or_works(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.own(), folder)
    whole = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.unlink()
    names = sorted(state)
    table = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / "vae" / file)
        table |= dict.fromkeys(part, file)
    good = tmp_path / "good.json"
    index = folder / "vae" / "diffusion_pytorch_model.safetensors.index.json"
    for outer in (False, True):
        good.write_text(json.dumps(table if outer else {"metadata": {}, "weight_map": table}))
        for seed in range(SEEDS):
            content = mutant(good, seed)
            index.write_bytes(b'{"weight_map": ' + content + b"}" if outer else content)
            survive(as_model, folder, f"index, {outer}, seed {seed}")


def test_a_damaged_checkpoint_is_refused_or_works(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    refused = 0
    for seed in range(SEEDS):
        path.write_bytes(mutant(tiny.sd1().file, seed))
        refused += survive(as_model, path, f"seed {seed}")
    assert refused > SEEDS / 2


def test_a_damaged_adapter_config_is_refused_or_works(samples: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.json"
    good.write_text(json.dumps({"lora_alpha": 2, "alpha_pattern": {"to_q": 3}, "use_rslora": True}))
    state = {
        name.replace("lora_unet_", "base_model.model."): value
        for name, value in load_file(samples / "lora.safetensors").items()
        if not name.endswith(".alpha")
    }
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = f"base_model.model.{layer.replace('.', '_')}"
    named = {name.replace(flat, f"base_model.model.{layer}"): v for name, v in state.items()}
    file = write(tmp_path / "adapter_model.safetensors", named)
    for seed in range(SEEDS):
        (tmp_path / "adapter_config.json").write_bytes(mutant(good, seed))
        survive(as_lora, file, f"adapter config, seed {seed}")
