"""What this machine computes on, guessed without torch, against what torch says."""

import platform
import subprocess
import sys

import pytest
import torch

from txt2img.errors import BadRequest
from txt2img.system import device_names
from txt2img.system.device.device import Device, choose


def test_the_guess_is_what_is_chosen_here() -> None:
    chosen = choose()
    assert device_names.guess_device(None) == chosen.torch_device.type
    guessed = device_names.guess_dtypes(chosen.torch_device.type, None)
    assert f"torch.{device_names.describe_dtypes(guessed)}" == str(chosen.dtype)


@pytest.mark.parametrize("text", ["fp16", "unet=bf16,vae=fp32", "bf16,text=float32"])
def test_precisions_are_those_that_are_loaded(text: str) -> None:
    guessed, chosen = device_names.guess_dtypes("cpu", text), choose("cpu", text)
    assert {part: f"torch.{name}" for part, name in guessed.items()} == {
        part: str(chosen.dtype_of(part)) for part in device_names.PARTS
    }


def test_networks_that_overflow_in_fp16_get_bf16_where_nobody_named_a_dtype() -> None:
    half, bf16 = torch.float16, torch.bfloat16
    wide = Device(torch.device("cuda"), half, wide=bf16).without_overflow()
    parts = {part: str(wide.dtype_of(part)).removeprefix("torch.") for part in device_names.PARTS}
    assert parts == device_names.guess_dtypes("cuda", None, fits_half=False)
    assert parts == {"unet": "bfloat16", "vae": "float16", "text": "bfloat16"}
    named = Device(torch.device("cuda"), half, (("vae", bf16),), wide=torch.float32)
    assert named.without_overflow().dtype_of("vae") == bf16
    assert named.without_overflow().dtype_of("transformer") == torch.float32
    for chosen in (Device(torch.device("cuda"), half), choose("cpu"), choose("cpu", "fp16")):
        assert chosen.without_overflow() == chosen
    assert set(device_names.guess_dtypes("cuda", "fp16", fits_half=False).values()) == {"float16"}


def test_a_card_that_must_not_be_used_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if (sys.platform, platform.machine()) != ("darwin", "arm64"):
        assert device_names.guess_device(None) == "cpu"


def test_names_are_checked() -> None:
    assert device_names.guess_device("CUDA:1") == "cuda"
    with pytest.raises(BadRequest, match="choose from cuda, mps, cpu"):
        device_names.guess_device("tpu")
    with pytest.raises(BadRequest, match="choose from float32, bf16, fp16"):
        device_names.guess_dtypes("cpu", "int8")


def test_the_plan_of_a_model_is_made_without_torch() -> None:
    line = (
        "import sys; from txt2img.pipeline.estimates.forecast import forecast_for; "
        "from txt2img.request.resolve import AdapterPaths; "
        "forecast_for('default', AdapterPaths(), None, None); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
