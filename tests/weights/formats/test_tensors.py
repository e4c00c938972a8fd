"""Tensors are read with the same values in any way, and all of them finite."""

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from txt2img.errors import BadFile, MissingWeights
from txt2img.weights.formats import safetensors_file, tensors

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_float_is_read_with_a_cast(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.tensor([1.0, -2.0, 0.5]).to(dtype)}, tmp_path / "a.safetensors")
    read = tensors.read(
        safetensors_file.header(tmp_path / "a.safetensors").tensors, CPU, torch.float32
    )
    assert read["a"].tolist() == [1.0, -2.0, 0.5]


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        save_file({"a": torch.tensor([1.0, value])}, tmp_path / "a.safetensors")
        with pytest.raises(MissingWeights, match='"a" contains values that are not finite'):
            tensors.read(
                safetensors_file.header(tmp_path / "a.safetensors").tensors, CPU, torch.float32
            )


def test_values_too_large_for_half_say_so(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1e6])}, tmp_path / "a.safetensors")
    with pytest.raises(MissingWeights, match="use --dtype float32"):
        tensors.read(
            safetensors_file.header(tmp_path / "a.safetensors").tensors, CPU, torch.float16
        )


def test_integers_are_no_weights(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1])}, tmp_path / "a.safetensors")
    with pytest.raises(MissingWeights, match="I64"):
        tensors.read(
            safetensors_file.header(tmp_path / "a.safetensors").tensors, CPU, torch.float32
        )


def test_file_that_shrinks_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100_000)}, path)
    header = safetensors_file.header(path)
    os.truncate(path, 5_000)
    with pytest.raises(BadFile, match="truncated"):
        tensors.read(header.tensors, CPU, torch.float32)


def test_read_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(4)}, path)
    read = tensors.read(safetensors_file.header(path).tensors, CPU, torch.float32)
    path.write_bytes(b"\0" * path.stat().st_size)
    assert read["a"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e5m2, torch.float8_e4m3fn),
    ],
)
@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf"])
def test_what_is_not_finite_is_found_in_any_type_and_place(
    dtype: torch.dtype, value: str, tmp_path: Path
) -> None:
    if dtype == torch.float8_e4m3fn and "inf" in value:
        pytest.skip("the type has no infinity")
    path, whole = tmp_path / "a.safetensors", torch.full((99,), float("1.75")).to(dtype)
    # Greatest and least finite values, and those next to zero, are weights like others.
    bounds = [torch.finfo(dtype).max, torch.finfo(dtype).min, 0.0, -0.0]
    whole[:4] = torch.tensor(bounds, dtype=torch.float64).to(dtype)
    save_file({"a": whole}, path)
    read = tensors.read(safetensors_file.header(path).tensors, CPU, dtype)["a"]
    assert torch.equal(read.double(), whole.double())
    for place in (0, 50, 98):
        bad = whole.clone()
        bad[place] = float(value)
        if value == "-nan":
            bad[place] = torch.copysign(torch.tensor(float("nan")), torch.tensor(-1.0)).to(dtype)
        save_file({"a": bad}, path)
        with pytest.raises(MissingWeights, match='"a" contains values that are not finite'):
            tensors.read(safetensors_file.header(path).tensors, CPU, dtype)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_several_threads_read_what_one_does(
    threads: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "THREADS_PAY", 0)
    torch.manual_seed(0)
    made = {f"t{n}": torch.randn(n, 70) for n in range(30)} | {"one": torch.tensor(2.5)}
    save_file({n: t.to(dtype) for n, t in made.items()}, tmp_path / "a.safetensors")
    stored = safetensors_file.header(tmp_path / "a.safetensors").tensors
    stored = {**stored, "turned": stored["t7"].transpose(), "part": stored["t8"].chunk(1, 4)}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        read = tensors.read(stored, CPU, torch.float32)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert [stored[name].start for name in read] == sorted(ref.start for ref in stored.values())
    for name, value in made.items():
        assert torch.equal(read[name], value.to(dtype).float())
    assert torch.equal(read["turned"], made["t7"].to(dtype).float().T)
    assert torch.equal(read["part"], made["t8"].to(dtype).float()[2:4])


@pytest.mark.usefixtures("four_threads")
def test_tensors_for_a_device_are_not_all_on_the_cpu_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({f"t{n}": torch.ones(9) for n in range(40)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(tensors, "THREADS_PAY", 0)
    monkeypatch.setattr(tensors, "_is_finite", lambda value: value.is_meta)
    own, here = tensors.read_stored, list[weakref.ref[Tensor]]()

    def watched(
        name: str, ref: safetensors_file.TensorRef, files: tensors.Files | None = None
    ) -> Tensor:
        assert sum(one() is not None for one in here) < tensors.READERS
        value = own(name, ref, files)
        here.append(weakref.ref(value))
        return value

    monkeypatch.setattr(tensors, "read_stored", watched)
    stored = safetensors_file.header(tmp_path / "a.safetensors").tensors
    read = tensors.read(stored, torch.device("meta"), torch.float32)
    assert len(read) == len(here) == 40 and all(value.is_meta for value in read.values())


@pytest.fixture
def four_threads() -> Iterator[None]:
    """Four threads, as on a machine with four cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize("least", [0, tensors.THREADS_PAY])
def test_the_first_bad_tensor_of_a_file_is_the_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
) -> None:
    monkeypatch.setattr(tensors, "THREADS_PAY", least)
    made = {f"t{n}": torch.ones(n + 1) for n in range(20)}
    made["t7"][3] = made["t15"][0] = float("nan")
    save_file(made, tmp_path / "a.safetensors")
    stored = safetensors_file.header(tmp_path / "a.safetensors").tensors
    first = next(name for name in stored if name in ("t7", "t15"))
    for _ in range(3):
        with pytest.raises(MissingWeights, match=f'"{first}" contains'):
            tensors.read(stored, CPU, torch.float32)


def test_a_narrow_weight_keeps_its_dtype_unless_it_has_a_scale(
    tmp_path: Path,
) -> None:
    scale = torch.tensor(0.0123)
    narrow = torch.randn(9, 9).to(torch.float8_e4m3fn)
    named = {"a.weight": narrow, "b.weight": narrow.clone(), "b.scale_weight": scale}
    save_file(named, tmp_path / "a.safetensors")
    stored = safetensors_file.header(tmp_path / "a.safetensors").tensors
    read = tensors.read(stored, CPU, torch.float32, set(stored))
    assert read["a.weight"].dtype == torch.float8_e4m3fn
    # Rounded once more to eight bits the product would be another weight.
    assert torch.equal(read["b.weight"], narrow.float() * scale)
