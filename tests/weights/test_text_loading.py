"""Language models in little memory: their weights keep the dtype of the file, and leave again."""

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support import tiny_text
from txt2img.models.prompt_encoders import ZImageText
from txt2img.models.qwen3 import Qwen3TextEncoder
from txt2img.models.t5 import T5TextEncoder
from txt2img.system.device.device import Device
from txt2img.system.device.offload import Placement
from txt2img.weights import load
from txt2img.weights.formats import safetensors_file
from txt2img.weights.layouts import text_key_maps
from txt2img.weights.text_tokenizer_files import qwen_tokenizer, t5_tokenizer

CPU, LENGTH = torch.device("cpu"), 24


def states(kind: str, path: Path, low: bool) -> tuple[Tensor, nn.Module, set[torch.dtype]]:
    """The states of a prompt, the encoder after it, and the dtypes of its weights meanwhile."""
    stored = safetensors_file.header(path).tensors
    if kind == "t5":
        t5 = text_key_maps.t5_config(stored, length=LENGTH)
        build = partial(T5TextEncoder, t5, t5_tokenizer(LENGTH))
        part = text_key_maps.t5_component(stored, "", t5)
    else:
        qwen3 = text_key_maps.qwen3_config(stored, length=LENGTH)
        build = partial(Qwen3TextEncoder, qwen3, qwen_tokenizer(LENGTH))
        part = text_key_maps.qwen3_component(stored, "", qwen3)
    device = Device(CPU, torch.float32, low=low)
    placement = Placement(CPU) if low else Placement()
    network = load.build_network(build, "text_encoder", part, device)
    load._pack(network, part, True)
    load.load_component(network, "text_encoder", part, device, placement)
    encode = network.encode if kind == "t5" else ZImageText([network]).encode
    with torch.inference_mode(), placement.using("text", network):
        dtypes = {weight.dtype for weight in network.parameters()}
        out = encode(["a red apple"])
    return out if kind == "t5" else out.tokens, network, dtypes


@pytest.mark.parametrize("kind", ["t5", "qwen3"])
def test_low_memory_keeps_a_files_dtype_and_every_bit(kind, tmp_path):
    model = tiny_text.t5() if kind == "t5" else tiny_text.qwen3()
    path = tmp_path / "model.safetensors"
    save_file({n: value.half() for n, value in tiny_text.tensors_of(model).items()}, path)
    plain, usual, _ = states(kind, path, low=False)
    low, network, dtypes = states(kind, path, low=True)
    assert torch.equal(low, plain)
    assert dtypes == {torch.float16, torch.float32}
    assert not any(weight.is_meta for weight in usual.parameters())
    assert all(weight.is_meta for weight in network.parameters())
