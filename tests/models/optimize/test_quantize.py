"""Weights of 8 bits change the U-Net's output by little, and a picture's record says so."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import Command
from tests.pipeline.test_generate import SMALL
from txt2img.diffusion.conditioning import Cond
from txt2img.errors import BadRequest
from txt2img.images.image_file import read
from txt2img.models.optimize.quantize import quantize
from txt2img.request.adapters import Lora
from txt2img.system.device.device import Device
from txt2img.weights.apply_adapters import resolve_adapters
from txt2img.weights.load import load

CPU = Device(torch.device("cpu"), torch.float32)


# Rounding to a 127th of a row's greatest value, and to 3 bits of mantissa.
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.01), ("fp8", 0.05)])
@torch.inference_mode()
def test_the_error_is_that_of_eight_bits(sd1_folder: Path, kind: str, most: float) -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    x, time, cond = torch.randn(2, 4, 8, 8), torch.full((2,), 500.0), Cond(torch.randn(2, 77, 32))
    exact = load(str(sd1_folder), CPU).network
    model = load(str(sd1_folder), replace(CPU, quantize=kind))
    expected, found = exact(x, time, cond), model.network(x, time, cond)
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < most
    model.adapters.paths = replace(model.adapters.paths, loras={"x": Path("x.safetensors")})
    with pytest.raises(BadRequest, match="--quantize makes weights too narrow for a LoRA"):
        resolve_adapters(model, replace(SMALL, loras=(Lora("x"),)))


def test_a_record_says_so(draw: Command) -> None:
    pytest.importorskip("torchao")
    outcome = draw("a", "--seed", "1", "--quantize", "int8", "-o", "x.png")
    assert outcome.code == 0, outcome.err
    environment = read(Path("x.png")).origin.environment
    assert environment["dtype"] == "unet=float32/int8,vae=float32,text=float32"


def test_without_torchao_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(BadRequest, match=r"needs torchao.*pip install torchao"):
        quantize(torch.nn.Linear(2, 2), "int8")
    with pytest.raises(BadRequest, match='--quantize "int4"; choose from int8, fp8'):
        quantize(torch.nn.Linear(2, 2), "int4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantize", "int4"), '--quantize "int4"; choose int8 or fp8'),
        (("--quantize", "int8", "--low-memory"), "give one"),
        (("--quantize", "fp8", "--offload", "sequential"), "use model"),
    ],
)
def test_what_cannot_be_is_refused(draw: Command, options: tuple[str, ...], message: str) -> None:
    outcome = draw("a", *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_torchaos_warnings_are_silenced() -> None:
    pytest.importorskip("torchao")
    lines = (
        "import torch",
        "from txt2img.models.optimize.quantize import quantize",
        "quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), 'int8')",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
