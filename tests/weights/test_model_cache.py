"""The cached model is returned as long as loading would give the same."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.adapters import ATTENTION, kohya, pairs, write
from txt2img.errors import ModelNotFound
from txt2img.request.adapters import Lora
from txt2img.request.request import Request
from txt2img.request.resolve import AdapterPaths
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import apply_adapters, resolve_adapters
from txt2img.weights.model import AdapterState
from txt2img.weights.model_cache import ModelCache, files_key

CPU = Device(torch.device("cpu"), torch.float32)


@pytest.fixture
def cache() -> Iterator[ModelCache]:
    """An enabled cache."""
    cache = ModelCache()
    cache.enabled = True
    yield cache


@pytest.fixture
def copy(sd1_folder: Path, folder: Path) -> Path:
    """A copy of a model's folder, as "m" in the current one."""
    shutil.copytree(sd1_folder, folder / "m")
    return folder / "m"


def test_nothing_is_cached_unless_enabled(sd1_folder: Path) -> None:
    cache = ModelCache()
    first = cache.load(str(sd1_folder), CPU)
    assert cache.load(str(sd1_folder), CPU) is not first
    assert not cache.hit


def test_a_model_is_cached_by_its_files_not_its_name(cache: ModelCache, copy: Path) -> None:
    first = cache.load("m", CPU)
    assert not cache.hit
    assert cache.load(str(copy), CPU) is cache.load("m", CPU) is first
    assert cache.hit
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\0\0\0\0"
    weights.write_bytes(data)
    second = cache.load("m", CPU)
    assert second is not first and not cache.hit
    assert second.hash != first.hash
    with pytest.raises(ModelNotFound):
        cache.load("n", CPU)


def test_another_precision_is_another_model(cache: ModelCache, sd1_folder: Path) -> None:
    name = str(sd1_folder)
    first = cache.load(name, CPU)
    half = cache.load(name, Device(CPU.torch_device, CPU.dtype, (("vae", torch.bfloat16),)))
    assert half is not first
    assert next(half.vae.parameters()).dtype == torch.bfloat16
    low = cache.load(name, Device(CPU.torch_device, CPU.dtype, low=True))
    assert low is not half
    assert low.memory.low_memory


def test_another_vae_is_another_model(cache: ModelCache, sd1_folder: Path, copy: Path) -> None:
    name = str(sd1_folder)
    own = cache.load(name, CPU)
    other = cache.load(name, CPU, "m/vae")
    assert other is not own
    assert other.adapters.vae is not None
    assert cache.load(name, CPU, "m/vae") is other
    assert other.adapters.vae is not None
    (copy / "vae" / "config.json").touch()
    assert cache.load(name, CPU, "m/vae") is not other


def test_adapters_of_one_call_are_removed_for_the_next(
    cache: ModelCache, sd1_folder: Path, folder: Path
) -> None:
    model = cache.load(str(sd1_folder), CPU)
    before = {name: w.clone() for name, w in model.network.state_dict().items()}
    lora = kohya(pairs(model.network, ATTENTION))
    path = write(folder / "style.safetensors", lora)
    model.adapters.paths = AdapterPaths({"style": path})
    apply_adapters(model, resolve_adapters(model, Request("", loras=(Lora("style", 1.0, 1.0),))))
    changed = model.network.state_dict()
    assert any(not torch.equal(changed[name], weight) for name, weight in before.items())
    assert cache.load(str(sd1_folder), CPU) is model
    after = model.network.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert model.adapters == AdapterState()


def test_a_model_left_between_two_dtypes_is_loaded_again(
    cache: ModelCache, sd1_folder: Path
) -> None:
    first = cache.load(str(sd1_folder), CPU)
    first.vae.to(torch.bfloat16)  # as by a run that was stopped while it was turned back
    second = cache.load(str(sd1_folder), CPU)
    assert second is not first
    assert next(second.vae.parameters()).dtype == torch.float32


def test_shards_and_components_elsewhere_count(folder: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "a.index.json", "store/unet/w.safetensors"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    Path("m").mkdir()
    Path("m/unet").symlink_to(folder / "store" / "unet")
    before = [files_key(Path(name)) for name in ("a.index.json", "a.safetensors", "m")]
    Path("b.safetensors").write_text("xy")
    Path("store/unet/w.safetensors").write_text("xy")
    after = [files_key(Path(name)) for name in ("a.index.json", "a.safetensors", "m")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True, False]
