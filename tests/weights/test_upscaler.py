"""Upscaler files are read by spandrel, and by nothing that runs code."""

from pathlib import Path

import pytest
import torch

from tests.support import tiny, upscalers
from tests.support.upscalers import needs_spandrel, upscaler_file
from txt2img.errors import BadFile, ModelNotFound, UnknownLayout
from txt2img.system.device.device import Device
from txt2img.weights.file_kind import kind_of
from txt2img.weights.registry.find import find_upscaler
from txt2img.weights.upscaler import describe_network, import_spandrel, load_upscaler

pytestmark = needs_spandrel
CPU = torch.device("cpu")


def test_a_file_says_its_architecture_and_scale() -> None:
    upscaler = load_upscaler(upscaler_file(4), Device(CPU, torch.float32))
    assert (upscaler.name, upscaler.scale) == ("tiny-4x", 4)
    assert upscaler.architecture == "RealESRGAN Compact" and len(upscaler.hash) == 10
    assert upscaler(torch.rand(1, 3, 5, 7)).shape == (1, 3, 20, 28)
    assert kind_of(upscaler_file(4)) == "upscaler"


def test_a_network_of_one_channel_takes_each_colour_by_itself() -> None:
    from spandrel.architectures.Compact import Compact

    grey = Compact(num_in_ch=1, num_out_ch=1, num_feat=4, num_conv=1, upscale=2)
    path = upscalers.save(grey.state_dict(), "grey")
    upscaler = load_upscaler(path, Device(CPU, torch.float32))
    pixels = torch.rand(1, 3, 6, 6)
    swapped = upscaler(pixels.flip(1))
    torch.testing.assert_close(upscaler(pixels), swapped.flip(1))


def test_tables_of_integers_are_read_as_they_are() -> None:
    from spandrel.architectures.SwinIR import SwinIR

    network = SwinIR(
        img_size=8, embed_dim=12, depths=[2], num_heads=[2], window_size=4, upscale=2,
        upsampler="pixelshuffledirect",
    ).eval()  # fmt: skip
    upscaler = load_upscaler(
        upscalers.save(network.state_dict(), "swin"), Device(CPU, torch.float16)
    )
    assert upscaler.network.dtype == torch.float32 or upscaler.network.supports_half
    name = "layers.0.residual_group.blocks.0.attn.relative_position_index"
    assert torch.equal(upscaler.network.model.state_dict()[name], network.state_dict()[name])
    assert upscaler(torch.rand(1, 3, 9, 8)).shape == (1, 3, 18, 16)


def test_what_is_no_upscaler_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UnknownLayout, match=r"is no upscaler that spandrel [\d.]+ knows"):
        describe_network(tiny.sd1().file)
    state = describe_network(upscaler_file(2)).model.state_dict()
    state["body.2.weight"] = state["body.2.weight"][:5]
    with pytest.raises(BadFile, match="is not a whole upscaler"):
        describe_network(upscalers.save(state, "broken"))


def test_pickles_are_refused_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TXT2IMG_MODELS", str(tmp_path))
    pickled = tmp_path / "upscale_models" / "4x-Famous.pth"
    pickled.parent.mkdir()
    torch.save({}, pickled)
    for name in ("4x-Famous", str(pickled)):
        with pytest.raises(UnknownLayout, match="can run any code when it is opened"):
            describe_network(find_upscaler("--model", name))
    with pytest.raises(ModelNotFound):
        find_upscaler("--model", "4x-Unknown")


def test_spandrel_is_imported_beside_a_torchvision_of_another_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "spandrel"]:
        monkeypatch.delitem(sys.modules, name)
    before = {name for name in sys.modules if name.startswith("torchvision")}
    monkeypatch.setitem(sys.modules, "torchvision", None)  # so that importing it fails
    assert import_spandrel().ModelLoader
    assert sys.modules["torchvision"] is None
    assert {name for name in sys.modules if name.startswith("torchvision")} <= before | {
        "torchvision"
    }
