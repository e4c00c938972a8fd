"""Weights that go to a device through two buffers are those that are read whole, or as refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from txt2img.errors import BadFile, MissingWeights, Txt2imgError
from txt2img.weights.formats import (
    gpu_reader,
    safetensors_file,
)
from txt2img.weights.formats import (
    tensors as reading,
)

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of several types and sizes, larger and smaller than a buffer."""
    torch.manual_seed(0)
    tensors = {
        "large": torch.randn(100, 7).half(),
        "small": torch.randn(3).bfloat16(),
        "empty": torch.empty(0, 4),
        "narrow": torch.randn(33).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("size", [64, 700, 2**16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_they_are_the_same(
    path: Path, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_reader.Stage.__init__, "__defaults__", (size,))
    stored = dict(safetensors_file.header(path).tensors)
    stored["turned"] = stored["large"].turn()
    stored["half of it"] = stored["large"].part(1, 2)
    wanted = reading.read(stored, CPU, dtype, {"narrow"})
    found = gpu_reader.read(stored, CPU, dtype, {"narrow"})
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert torch.equal(found[name].float(), value.float())


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.tensor([1.0, float("nan")]), torch.float32),
        (torch.tensor([1e9]), torch.float16),
        (torch.tensor([1, 2]), torch.float32),
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(
    tmp_path: Path, value: torch.Tensor, dtype: torch.dtype
) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"good": torch.ones(3), "x": value}, file)
    stored = safetensors_file.header(file).tensors
    said: list[Txt2imgError] = []
    for way in (reading, gpu_reader):
        with pytest.raises(MissingWeights) as error:
            way.read(stored, CPU, dtype)
        said.append(error.value)
    assert str(said[0]) == str(said[1]) and "x" in str(said[0])


def test_a_file_that_shrinks_is_named(path: Path) -> None:
    stored = safetensors_file.header(path).tensors
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadFile, match=r"x\.safetensors: it ends within"):
        gpu_reader.read(stored, CPU, torch.float32)
