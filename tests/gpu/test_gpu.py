"""What only a CUDA device can show: the same pictures, in half precision too; training there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.test_loop import run, tiny
from txt2img.pipeline.generate import generate
from txt2img.request.request import Request
from txt2img.system.device.device import choose
from txt2img.train.loop import is_whole
from txt2img.weights.load import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
APPLE = Request("red apple, 3d emoji", steps=20, seed=42)


def drawn(device: str, dtype: str, request: Request = APPLE) -> list[np.ndarray]:
    """The pixels (H, W, 3), 0 to 255, of a request's pictures."""
    images = generate(request, load("default", choose(device, dtype)))
    return [np.asarray(image, dtype=np.float64) for image in images]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(((a - b) ** 2).mean(), 1e-9)))


@pytest.mark.parametrize(("dtype", "least"), [("float32", 40.0), ("fp16", 28.0), ("bf16", 22.0)])
def test_a_card_draws_what_a_cpu_draws(dtype: str, least: float) -> None:
    [cpu], [card] = drawn("cpu", "float32"), drawn("cuda", dtype)
    assert psnr(cpu, card) > least


def test_the_same_line_twice_is_the_same_picture() -> None:
    [first], [second] = drawn("cuda", "fp16"), drawn("cuda", "fp16")
    assert np.array_equal(first, second)


@pytest.fixture
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What training sets for its process is set back for the tests after it."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)


@pytest.mark.usefixtures("as_before")
def test_training_runs_in_bf16_channels_last_and_compiled(tmp_path: Path) -> None:
    config = tiny(tmp_path, device="cuda", dtype="bf16", channels_last=True, compile=True)
    reports = run(replace(config, sample_every=4, stop_after=1e-6))  # the first step of one stage
    while not is_whole(config):
        reports += run(replace(config, sample_every=4))
    assert all(np.isfinite(report.loss) for report in reports)
    assert not any(report.plain for report in reports)
    assert reports[-1].sheet is not None
