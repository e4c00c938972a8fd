"""Where to compute is chosen well, or as asked, or refused by name."""

import pytest
import torch

from txt2img.errors import BadRequest
from txt2img.system import resources
from txt2img.system.device import device
from txt2img.system.device.device import choose, describe, description, for_training

made_own: list[torch.device] = []  # the card that was made the process's own


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Pretends that there are two modern CUDA cards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "set_device", made_own.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    made_own.clear()
    return monkeypatch


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretends that there is nothing but the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_card")
def test_a_cpu_computes_in_float32() -> None:
    assert choose() == choose("cpu") == choose("CPU", "fp32")
    assert (choose().torch_device.type, choose().dtype) == ("cpu", torch.float32)


def test_a_modern_card_comes_first_and_in_half_precision(card: pytest.MonkeyPatch) -> None:
    assert (choose().torch_device.type, choose().dtype) == ("cuda", torch.float16)
    assert choose("cuda:1").torch_device.index == 1
    assert choose("cpu").dtype == torch.float32
    assert made_own == [torch.device("cuda:1")]  # what has no device of its own is made there
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("capability", "name"), [((6, 1), "GTX 1080"), ((7, 5), "GTX 1660")])
def test_cards_that_are_bad_in_half_precision_use_float32(
    card: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    card.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert choose().dtype == torch.float32


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), "bf16"), ((7, 5), "float32")])
def test_a_card_learns_in_bf16_where_it_has_it(
    card: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert for_training() == choose(None, dtype)
    assert for_training("cuda", "fp16") == choose("cuda", "fp16")


@pytest.mark.parametrize("there", [True, False])
def test_a_cpu_learns_in_bf16_only_where_it_is_in_hardware(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": there})
    assert for_training("cpu").dtype == (torch.bfloat16 if there else torch.float32)
    assert for_training("cpu", "bf16").dtype == torch.bfloat16


def test_moments_that_fade_away_are_zeros_to_training_on_a_processor() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    faded = torch.tensor([1e-38])
    assert float(faded * 0.1) > 0
    try:
        for_training("cpu")
        assert float(faded * 0.1) == 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp16", torch.float16), ("BF16", torch.bfloat16), ("float32", torch.float32)],
)
def test_the_precision_can_be_chosen(name: str, dtype: torch.dtype) -> None:
    assert choose("cpu", name).dtype == dtype


def test_each_part_can_have_a_precision_of_its_own() -> None:
    device = choose("cpu", "bf16,vae=fp32,TEXT=float16")
    found = {part: device.dtype_of(part) for part in ("unet", "vae", "text_encoder_2")}
    assert list(found.values()) == [torch.bfloat16, torch.float32, torch.float16]
    assert choose("cpu", "unet=fp16").dtype_of("vae") == torch.float32


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("unet=int8", 'no dtype "int8"'),
        ("lora=fp16", 'dtype: "lora" is no part; parts are unet, vae, text'),
        ("vae=fp16,vae=fp32", 'dtype: "vae" is there twice'),
        ("fp16,fp32", 'dtype: "fp32" is there twice'),
        ("=fp16", "is no part"),
        ("fp16,", 'no dtype ""'),
    ],
)
def test_precisions_that_make_no_sense_are_refused(dtype: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        choose("cpu", dtype)


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("cuda", None, "this machine has no cuda; choose from cpu"),
        ("mps", None, "this machine has no mps"),
        ("tpu", None, 'no device "tpu"; choose from cpu'),
        ("meta", None, "no device"),
        ("cpu:7", None, "no device"),
        (None, "int8", 'no dtype "int8"; choose from float32, bf16, fp16'),
    ],
)
def test_what_is_not_there_is_refused(name: str | None, dtype: str | None, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        choose(name, dtype)


def test_a_record_names_the_card(card: pytest.MonkeyPatch) -> None:
    assert describe(torch.device("cuda")) == "cuda (NVIDIA H200)"
    assert describe(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (3, 2), (None, 2)])
def test_there_are_no_more_threads_than_cores(
    cores: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(resources, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1] if asked else 2)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    choose("cpu")
    assert torch.get_num_threads() == threads


def test_the_manner_of_computing_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(resources, "cores", lambda: 4)
    monkeypatch.setattr(device, "has_bf16", lambda place: True)
    cpu = torch.device("cpu")
    line = description(cpu, "float32")
    assert line.startswith("Computing on the CPU in float32, 4 threads on 4 physical cores; ")
    assert line.endswith("--dtype bf16 is quicker, most of all for large models")
    monkeypatch.setattr(resources, "cores", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert description(cpu, "bfloat16") == "Computing on the CPU in bfloat16, 1 thread"
